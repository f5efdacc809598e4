"""Every private name of torch's that this folder uses: one list, held against the code and against torch.

Where a torch from 2.11 on lacks a name, its row says since which version it is there, or until which, and
what is done without it.
"""

from __future__ import annotations

from contextlib import suppress

from qgraph.compat.names import Name, find, names_in
from qgraph.compat.table_offline import OFFLINE

NAMES: tuple[Name, ...] = (
    *OFFLINE,
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
        "descriptions",
        "torch._functorch._aot_autograd.descriptors",
        ("what a result is the gradient of", "GradAOTOutput.grad_of"),
        ("which parameter an input is", "ParamAOTInput.target"),
        ("what the backward finds in memory anyway, and frozen weights", "BufferAOTInput"),
        ("which buffers are not frozen", "InputMutationAOTOutput.mutated_input"),
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
        ("saying why a model ran as it is", "utils.counters"),
        ("compiling modules of torch's own", "external_utils.wrap_inline"),
        ("capturing without running", "functional_export._dynamo_graph_capture_for_export"),
        ("the model's own names of parameters", "functional_export[_export_root]"),
        (
            "one graph for each module",
            "guards.GuardBuilder.ID_MATCH",
            "guards.install_guard",
            "output_graph[_dynamo_source]",
            "source.AttrSource.member",
            "source.DictGetItemSource.index",
            "source.LocalSource.local_name",
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
        ("one message and no traceback", "log.level", "log.setLevel"),
        (
            "saying that a model needs numbers",
            "DataDependentOutputException",
            "DynamicOutputShapeException",
        ),
    ),
    *names_in(
        "inductor",
        "torch._inductor",
        ("handing Inductor the passes", "compile_fx.compile_fx(config_patches)"),
        (
            "torch.compile's mode and options",
            "config.get_config_copy",
            "config.get_type",
            "list_mode_options",
            "list_options",
        ),
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
        (
            "knowing what runs in a backward",
            "compile_fx.compile_fx(inner_compile)",
            "compile_fx.compile_fx_inner",
            "output_code.CompiledFxGraph.current_callable",
        ),
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
        "torch",
        (
            "edits of a cast that are to be stored, steps of an optimizer",
            "Tensor._version",
            "nn.parameter[_is_param]",
        ),
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
        instead="models are told apart by the guards on them; all of a class have at most 256 graphs",
    ),
    Name(
        path="torch.compile(recompile_limit)",
        area="dynamo",
        used_for="a limit for each model",
        since="2.12",
        instead="Dynamo's own limit is another while the model is called",
    ),
    Name(
        path="torch.fx.proxy[autograd_backward]",
        area="meta",
        used_for="what the backward computes",
        since="2.12",
        instead="no node has such a mark, so an inserted one inherits none",
    ),
    *names_in(
        "dynamo",
        "torch",
        ("weights that are no Parameter", "nn.Module._parameters"),
        ("which module's code is compiled", "nn.Module._buffers", "nn.Module._modules"),
    ),
    *names_in(
        "watching",
        "torch",
        (
            "recording what runs",
            "_C._autograd._disable_profiler_legacy",
            "_C._autograd._enable_profiler_legacy",
            "_C._profiler.ProfilerConfig",
            "_C._profiler.ProfilerState.CPU",
            "_C._profiler._ExperimentalConfig",
            "_C._autograd.ProfilerEvent.name",
            "_C._autograd.ProfilerEvent.kind",
            "_C._autograd.ProfilerEvent.shapes",
            "_C._autograd.ProfilerEvent.stack",
        ),
        ("recording nothing in a backward", "_C._current_graph_task_id"),
        ("leaving a user's profiler alone", "_C._autograd._profiler_enabled"),
        (
            "recording nothing while something is compiled",
            "_dynamo.callback.CallbackArgs.callback_trigger",
            "_dynamo.callback.CallbackTrigger.DYNAMO",
            "_dynamo.callback.CallbackTrigger.LAZY_BACKWARD",
            "_dynamo.callback.callback_handler",
            "_dynamo.callback.callback_handler.register_end_callback",
            "_dynamo.callback.callback_handler.register_start_callback",
            "_dynamo.callback.callback_handler.remove_end_callback",
            "_dynamo.callback.callback_handler.remove_start_callback",
        ),
        (
            "going around Dynamo under a mode",
            "utils._python_dispatch._get_current_dispatch_mode_stack",
        ),
        ("capturing a compiled model", "_subclasses.fake_tensor.FakeTensorMode"),
        ("a compiled model in another", "_dynamo.disable"),
        ("a call that is looked through", "_dynamo.eval_frame.skip_code"),
    ),
)


def is_there(path: str) -> bool:
    """Whether the installed torch has a name of the list; one that is not in it is a KeyError."""
    with suppress(AttributeError):
        find({name.path: name.path for name in NAMES}[path])
        return True
    return False
