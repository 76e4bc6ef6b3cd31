// What .cu files include; found before a CUDA toolkit's file of this name.
#pragma once
#include "../cuda_on_host.h"
