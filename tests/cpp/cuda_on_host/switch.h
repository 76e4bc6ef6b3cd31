// Switches from one stack to another. What a called function must preserve is pushed, the stack
// pointer stored in *from and taken from `to`. The C library's swapcontext also makes a system call
// each time.

#pragma once

extern "C" void cuda_on_host_switch(void** from, void* to);

// What a new stack begins with, for a switch to it to start a function: this many words at its top,
// zero but for the function's address in one of them.
#if defined(__x86_64__)
constexpr int kSavedWords = 8;  // six registers, the function, and where it would return to
constexpr int kReturnWord = 6;
#elif defined(__aarch64__)
constexpr int kSavedWords = 20;  // x19 to x30, d8 to d15
constexpr int kReturnWord = 11;
#else
#error "cuda_on_host knows x86-64 and aarch64"
#endif
