// Everything a program that trains with Erlangen needs: one include.
#pragma once

#include <erlangen/functional.h>
#include <erlangen/optimizer.h>
#include <erlangen/options.h>
#include <erlangen/routing.h>
