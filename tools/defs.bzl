"""Build rules of the project: cc rules with the project's flags."""

_COPTS = ["-std=c++20", "-O2", "-fopenmp", "-Wall", "-Wextra", "-Werror"]

# Kernels are plain loops that the compiler vectorises; they never rely on errno or signalling NaN.
KERNEL_COPTS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]

def ng_cc_library(name, copts = [], **kwargs):
    native.cc_library(name = name, copts = _COPTS + copts, linkstatic = True, **kwargs)

_NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    # Hopper; later processors compile the PTX when the program starts.
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    "-Werror=all-warnings",
    "-Xcompiler=-fPIC,-Wall,-Wextra",
    # nvcc prints its own line directives, which -Wextra would read as ours.
    "-Xcompiler=-Wno-unused-parameter",
]

def _nvcc_objects_impl(ctx):
    compilation = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps]).compilation_context
    folders = depset(transitive = [compilation.includes, compilation.system_includes, compilation.quote_includes])
    objects = []
    for source in ctx.files.srcs:
        object = ctx.actions.declare_file(ctx.label.name + "/" + source.basename + ".o")
        arguments = ctx.actions.args()
        arguments.add_all(_NVCC_FLAGS + ctx.attr.copts)
        arguments.add_all(["-I", "."])
        arguments.add_all(folders, before_each = "-isystem")
        arguments.add_all(["-c", source, "-o", object])
        ctx.actions.run(
            executable = ctx.file._nvcc,
            arguments = [arguments],
            inputs = depset(ctx.files.srcs + ctx.files.hdrs, transitive = [compilation.headers, depset(ctx.files._toolchain)]),
            outputs = [object],
            mnemonic = "Nvcc",
            progress_message = "Compiling kernels of %s" % source.short_path,
            use_default_shell_env = True,
        )
        objects.append(object)
    return [DefaultInfo(files = depset(objects))]

_nvcc_objects = rule(
    implementation = _nvcc_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "copts": attr.string_list(),
        "_nvcc": attr.label(default = "@cuda//:bin/nvcc", allow_single_file = True),
        "_toolchain": attr.label(default = "@cuda//:toolchain"),
    },
)

def ng_cuda_library(name, srcs, hdrs = [], deps = [], copts = [], hopper_only = False, **kwargs):
    """Kernels: .cu sources compiled by nvcc from wheels, linked with cudart alone. No GPU is needed to build or to load them.

    Without hopper_only (fp8 instructions, say) there is machine code for Ampere, too.
    """
    deps = deps + ["@torch//:cudart"]
    copts = copts + ([] if hopper_only else ["-gencode=arch=compute_80,code=sm_80"])
    _nvcc_objects(name = name + "_objects", srcs = srcs, hdrs = hdrs, deps = deps, copts = copts)
    native.cc_library(name = name, srcs = [name + "_objects"], hdrs = hdrs, deps = deps, linkstatic = True, **kwargs)

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
