"""Every private name of torch's that this folder uses: one list, held against the code and against torch.

Where a torch from 2.11 on lacks a name, its row says since which version it is there, or until which, and
what is done without it.
"""

from __future__ import annotations

from contextlib import suppress

from qgraph.compat.names import Name, find, names_in

NAMES: tuple[Name, ...] = (
    *names_in(
        "aot",
        "torch._functorch",
        ("rewriting the joint graph", "_aot_autograd.schemas.JointWithDescriptors.graph_module"),
        (
            "compiling the joint graph",
            "aot_autograd.aot_compile_joint_with_descriptors(bw_compiler, fw_compiler, partition_fn)",
        ),
        ("the joint graph", "aot_autograd.aot_export_joint_with_descriptors(decompositions)"),
    ),
    *names_in(
        "aot",
        "torch._dynamo.backends.common",
        (
            "codegen=False",
            "aot_autograd(bw_compiler, decompositions, fw_compiler, inference_compiler, partition_fn)",
        ),
    ),
    *names_in("aot", "torch._inductor", ("compiling a half", "compile_fx.compile_fx_inner")),
    *names_in(
        "aot",
        "functorch.compile",
        ("running a half op by op", "make_boxed_func"),
        ("cutting the joint graph in two", "min_cut_rematerialization_partition(num_fwd_outputs)"),
    ),
    *names_in(
        "aten",
        "torch",
        ("multiplying INT8 codes", "_int_mm"),
        ("telling ops from functions", "_ops.OpOverload"),
    ),
    *names_in(
        "codegen",
        "torch._inductor",
        ("loading a written kernel", "codecache.PyCodeCache.load"),
        (
            "the arguments of a written kernel",
            "codegen.common.ArgName.name",
            "codegen.common.Kernel.args",
            "codegen.common.KernelArgs.python_argdefs",
        ),
        (
            "counting bytes",
            "codegen.simd.SIMDKernel.features",
            "codegen.simd.SIMDKernel.numels",
            "codegen.simd_kernel_features.SIMDKernelFeatures.buf_accesses",
            "dependencies.MemoryDep.index",
            "graph.GraphLowering.get_dtype",
            "graph.GraphLowering.get_numel",
            "graph.GraphLowering.sizevars",
            "utils.get_dtype_size",
            "virtualized.V.graph",
        ),
        ("seeing each kernel", "codegen.triton.TritonScheduling.define_kernel"),
        (
            "writing the program that would run",
            "compile_fx._recursive_post_grad_passes(is_inference)",
            "debug.DebugContext",
            "fx_passes.post_grad.view_to_reshape",
            "graph.GraphLowering(example_inputs, is_backward, is_inference)",
            "graph.GraphLowering.codegen",
            "graph.GraphLowering.run",
            "virtualized.V.set_debug_handler",
            "virtualized.V.set_extern_kernel_nodes",
            "virtualized.V.set_fake_mode",
            "virtualized.V.set_graph_handler",
        ),
        ("writing without a pool of processes", "config.compile_threads"),
        ("writing anew each time", "config.force_disable_caches"),
        ("settings for the time of writing", "config.patch"),
        ("telling results of a call from calls", "ir.MultiOutput"),
        ("which nodes a kernel computes", "ir.Operation.get_origins"),
        ("which node a library's call computes", "ir.Operation.origin_node"),
        (
            "what Triton is given",
            "runtime.triton_heuristics.CachingAutotuner._create_compile_meta",
            "runtime.triton_heuristics.CachingAutotuner._create_compile_options",
        ),
        ("the first way to compile a kernel", "runtime.triton_heuristics.CachingAutotuner.configs"),
        ("the function that Triton compiles", "runtime.triton_heuristics.CachingAutotuner.fn"),
        ("nodes of a schedule", "scheduler.BaseSchedulerNode.get_name"),
        ("the library's call in a schedule", "scheduler.ExternKernelSchedulerNode.node"),
        ("seeing each library's call", "scheduler.Scheduler.codegen_extern_call"),
        ("sizes as numbers", "sizevars.SizeVarAllocator.optimization_hint"),
        (
            "naming written kernels",
            "utils.Placeholder.DESCRIPTIVE_NAME",
            "utils.Placeholder.KERNEL_NAME",
        ),
        ("the program as text", "utils.ValueWithLineMap.value"),
    ),
    *names_in(
        "descriptions",
        "torch._functorch._aot_autograd.descriptors",
        ("what a result is the gradient of", "GradAOTOutput.grad_of"),
        ("which parameter an input is", "ParamAOTInput.target"),
        ("what the backward finds in memory anyway", "BufferAOTInput"),
        ("which input one is", "PlainAOTInput.idx"),
        ("this process's part of a split tensor", "SubclassGetAttrAOTInput.attr"),
        ("the split tensor that a part is of", "SubclassGetAttrAOTInput.base"),
        ("which result a gradient is of", "TangentAOTInput.output"),
    ),
    *names_in(
        "descriptions",
        "torch.distributed.tensor",
        ("this process's part of a split tensor", "DTensor._local_tensor"),
    ),
    *names_in(
        "dynamo",
        "torch._dynamo",
        ("graphs that are not cut where DDP's buckets end", "config.optimize_ddp"),
        ("settings for the time of a call", "config.patch"),
        ("warning before a model runs as it is", "config.recompile_limit"),
        ("saying that a model cannot be captured", "exc.TorchDynamoException"),
        ("compiling modules of torch's own", "external_utils.wrap_inline"),
        ("capturing without running", "functional_export._dynamo_graph_capture_for_export"),
        ("the model's own names of parameters", "functional_export[_export_root]"),
        (
            "one graph for each module",
            "guards.GuardBuilder.ID_MATCH",
            "guards.install_guard",
            "output_graph[_dynamo_source]",
            "source.NNModuleSource",
        ),
        ("knowing modules of torch's own", "trace_rules.check"),
    ),
    *names_in(
        "dynamo",
        "torch._guards",
        ("one graph for each module", "ChainedSource.base", "Source.make_guard"),
        (
            "telling captured pieces apart",
            "CompileContext.current_compile_id",
            "CompileId.frame_id",
        ),
    ),
    *names_in(
        "fake",
        "torch._subclasses.fake_tensor",
        ("making inputs of a model without weights", "FakeTensor.fake_mode"),
        ("making a model without weights", "FakeTensorMode(allow_non_fake_inputs)"),
    ),
    *names_in(
        "inductor",
        "torch._inductor",
        ("handing Inductor the passes", "compile_fx.compile_fx(config_patches)"),
        (
            "one table for both doors",
            "compile_fx.compile_fx(decompositions)",
            "decomposition.select_decomp_table",
        ),
        (
            "storing what the backward needs",
            "config.custom_partitioner_fn",
            "custom_graph_pass.CustomPartitionerFn",
        ),
        (
            "rewriting the joint graph",
            "config.joint_custom_pre_pass",
            "custom_graph_pass.CustomGraphPass",
        ),
        ("first calls on empty caches", "utils.fresh_cache(delete, dir)"),
        ("where compiled code is kept", "runtime.cache_dir_utils.cache_dir"),
    ),
    *names_in(
        "inductor",
        "torch._dynamo.utils",
        ("what the cache of graphs served", "counters", "counters.clear"),
    ),
    *names_in(
        "inductor",
        "torch._functorch.config",
        ("passes that no cache skips", "enable_autograd_cache", "patch"),
    ),
    *names_in(
        "meta",
        "torch.fx",
        ("softmax after it was decomposed", "experimental.proxy_tensor[original_aten]"),
        ("forgetting the shape of another value", "experimental.proxy_tensor[tensor_meta]"),
        ("shape and dtype of what a node computes", "experimental.proxy_tensor[val]"),
        ("what belongs to one checkpointed piece", "proxy[ac_graph_id]"),
        ("the function that a node computes", "traceback[custom]"),
        ("the module of a node", "proxy[nn_module_stack]"),
        ("what is kept for the backward", "proxy[recompute]"),
        ("pairing products of forward and backward", "proxy[seq_nr]"),
        ("the line of the model that a node stems from", "proxy[stack_trace]"),
    ),
    *names_in(
        "meta",
        "torch._functorch",
        ("what inputs and results are", "_aot_autograd.graph_capture[desc]"),
        ("the module of a backward node", "_aot_autograd.utils[fwd_nn_module_stack]"),
        ("the half of a node", "partitioners[is_backward, is_forward, partitioner_tag]"),
        ("the half of an inserted node", "partitioners[must_be_in_backward]"),
    ),
    *names_in(
        "meta",
        "torch._subclasses.fake_tensor",
        ("values of inserted nodes", "FakeTensor.fake_mode"),
    ),
    *names_in(
        "modules",
        "torch.nn.Module",
        ("making a model fake", "_buffers"),
        ("compiling modules of torch's own", "_call_impl"),
        ("compiling in place", "_compiled_call_impl"),
        ("parameters behind a property", "_parameters"),
        ("paths of modules as Dynamo writes them", "_modules"),
    ),
    *names_in(
        "modules",
        "torch._dynamo",
        ("paths of modules in a wrapper", "eval_frame[_orig_mod]"),
        ("paths of modules in a capture", "functional_export[_export_root]"),
    ),
    *names_in(
        "modules",
        "torch.distributed.algorithms._checkpoint",
        ("paths of modules in a wrapper", "checkpoint_wrapper[_checkpoint_wrapped_module]"),
    ),
    *names_in(
        "standin",
        "torch._dynamo.device_interface",
        (
            "answering for a GPU",
            "CudaInterface.Worker.current_device",
            "CudaInterface.Worker.get_device_properties",
            "CudaInterface.Worker.set_device",
            "CudaInterface.exchange_device",
            "CudaInterface.get_compute_capability",
            "CudaInterface.is_triton_capable",
            "CudaInterface.maybe_exchange_device",
            "CudaInterface.raise_if_triton_unavailable",
            "CudaInterface.set_device",
            "device_interfaces",
        ),
        ("a GPU that nothing looks for", "_device_initialized"),
    ),
    *names_in(
        "standin",
        "torch._inductor",
        (
            "forgetting another GPU",
            "codegen.cuda.cuda_env",
            "kernel.mm._is_sm7x_or_older_gpu",
            "runtime.hints.DeviceProperties.create",
            "utils._rocm_native_device_arch_name",
            "utils.get_device_tflops",
            "utils.get_gpu_dram_gbps",
            "utils.get_gpu_type",
            "utils.get_max_num_sms",
            "utils.is_big_gpu",
        ),
        ("a GPU that nothing looks for", "runtime.triton_helpers.set_driver_to_gpu"),
    ),
    *names_in(
        "standin",
        "torch._subclasses.fake_tensor",
        ("methods that ask for the device", "FakeTensor"),
        ("a GPU that nothing looks for", "FakeTensorMode.avoid_device_init"),
    ),
    *names_in("standin", "triton.runtime.driver", ("answering for a GPU", "driver._active")),
    *names_in("standin", "torch.utils", ("forgetting another GPU", "_triton")),
    *names_in(
        "stepping",
        "torch.optim",
        (
            "hooks that run once for a whole step",
            "Optimizer.profile_hook_step",
            "optimizer[hooked]",
        ),
        ("a scheduler that sees the steps", "lr_scheduler[_opt_called]"),
        ("a scheduler that leaves the step as it is", "lr_scheduler[_wrapped_by_lr_sched]"),
    ),
    *names_in(
        "symbolic",
        "torch",
        ("sizes as numbers", "SymInt.node", "fx.experimental.sym_node.SymNode.hint"),
        ("what is known of sizes", "fx.experimental.symbolic_shapes.statically_known_true"),
    ),
    Name(
        path="torch.compile(isolate_recompiles)",
        area="dynamo",
        used_for="counting the graphs of each model alone",
        since="2.13",
        instead="the graphs of all models of a class are counted together, up to Dynamo's limit",
    ),
    Name(
        path="torch.fx.proxy[autograd_backward]",
        area="meta",
        used_for="what the backward computes",
        since="2.12",
        instead="no node has such a mark, so an inserted one inherits none",
    ),
    Name(
        path="torch._inductor.utils._triton_supported_fp8_dtypes",
        area="standin",
        used_for="forgetting another GPU",
        since="2.13",
        instead="nothing is remembered there, so nothing is forgotten",
    ),
)


def is_there(path: str) -> bool:
    """Whether the installed torch has a name of the list; one that is not in it is a KeyError."""
    with suppress(AttributeError):
        find({name.path: name.path for name in NAMES}[path])
        return True
    return False
