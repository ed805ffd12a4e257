"""Build rules of the project: cc rules with the project's flags."""

_COPTS = ["-std=c++20", "-O2", "-fopenmp", "-Wall", "-Wextra", "-Werror"]

# Kernels are plain loops that the compiler vectorises; they never rely on errno or signalling NaN.
KERNEL_COPTS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]

def ng_cc_library(name, copts = [], **kwargs):
    native.cc_library(name = name, copts = _COPTS + copts, linkstatic = True, **kwargs)

def ng_cc_binary(name, copts = [], **kwargs):
    native.cc_binary(name = name, copts = _COPTS + copts, linkstatic = True, **kwargs)

def ng_cc_test(name, srcs = None, deps = [], copts = [], size = "small", **kwargs):
    native.cc_test(
        name = name,
        srcs = srcs or [name + ".cc"],
        size = size,
        copts = _COPTS + copts,
        linkstatic = True,
        deps = deps + ["@system//:gtest_main"],
        **kwargs
    )

def ng_torch_test(name, deps = [], **kwargs):
    """A C++ test on tensors: torch's generator is seeded before each case."""
    ng_cc_test(name = name, deps = deps + ["//tests/support:seed_tests"], **kwargs)

def ng_python_test(name, srcs = None, data = [], size = "medium", args = [], **kwargs):
    """A test in Python that runs in the pinned environment (torch, transformers, torchao as oracles)."""
    main = srcs[0] if srcs else name + ".py"
    native.sh_test(
        name = name,
        srcs = ["//tools:run_python_test.sh"],
        size = size,
        data = data + (srcs or [main]),
        args = ["$(location %s)" % main] + args,
        **kwargs
    )
