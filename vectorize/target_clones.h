#pragma once

// NG_TARGET_CLONES before a function compiles it three times (AVX-512, AVX2, portable); the loader
// picks one by the processor (ifunc). The function must be a plain one with external linkage;
// the templates it calls must be NG_INLINE, or they would keep the portable code.
// This is the tree's one way of vectorising: plain loops, no intrinsics. Sanitizers instrument the
// resolver, which runs before they are initialised, so they get the portable code alone.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NG_TARGET_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NG_TARGET_CLONES
#endif

#define NG_INLINE inline __attribute__((always_inline))
#define NG_INLINE_LAMBDA __attribute__((always_inline))
