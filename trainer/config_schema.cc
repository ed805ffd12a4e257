#include "trainer/config_schema.h"

#include <algorithm>

#include "trainer/config_value.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

// Far above what fits any machine, and low enough that products of sizes (a step's windows over all
// ranks x tokens; a weight's elements) fit int64.
constexpr int64_t kMaxSize = 1 << 24;  // of a model's dimension
constexpr int64_t kMaxTokens = 1 << 22;
constexpr int64_t kMaxWindows = 1 << 20;
constexpr int64_t kMaxSteps = 1'000'000'000;
constexpr int64_t kMaxSeconds = 1'000'000;

template <auto Section, auto Member>
auto& field(TrainConfig& config) {
  return (config.*Section).*Member;
}

using C = TrainConfig;

// A size of the model.
template <auto Member>
ConfigKey shape(std::string_view name, int64_t min, std::string_view doc,
                std::string_view also_known_as) {
  return {.section = "model",
          .name = name,
          .value = IntegerKey{field<&C::model, Member>, min, kMaxSize},
          .unit = "",
          .doc = doc,
          .also_known_as = also_known_as,
          .is_model_shape = true};
}

// A positive number of the model.
template <auto Member>
ConfigKey positive(std::string_view name, std::string_view doc, std::string_view also_known_as) {
  return {.section = "model",
          .name = name,
          .value = NumberKey{.field = field<&C::model, Member>, .min_excluded = true},
          .unit = "",
          .doc = doc,
          .also_known_as = also_known_as,
          .is_model_shape = true};
}

const std::vector<ConfigSection>& sections() {
  static const std::vector<ConfigSection> all = {
      {"job", "where the run lives"},
      {"model", "the decoder: its shape, or a Hugging Face directory to start from"},
      {"tokenizer", "how text becomes token ids"},
      {"data", "what is trained on and what is held out", "dataset datasets"},
      {"training", "length, batch, precision, seed", "trainer"},
      {"optimizer", "the update rule"},
      {"lr_scheduler", "the learning rate over the run: warm-up, stable, decay", "schedule"},
      {"float8", "linears that compute in 8-bit floating point; see docs/FLOAT8.md", "fp8"},
      {"sparsity", "2:4 sparse and pruned linears; see docs/SPARSITY.md", "pruning"},
      {"qat", "layers that compute with the values they will have once quantized; see docs/QAT.md",
       "quantization quantize quant"},
      {"distillation", "a loss that compares with the model that was loaded; see docs/QAT.md",
       "kd teacher knowledge_distillation"},
      {"lora", "low-rank adapters beside frozen weights; see docs/QAT.md", "peft adapter"},
      {"parallelism", "the mesh of ranks", "fsdp distributed mesh"},
      {"activation_checkpoint", "memory saved by computing parts of forward again in backward"},
      {"comm", "what the ranks wait for each other, and what is left when one is lost"},
      {"checkpoint", "saving and resuming", "saving"},
      {"validation", "loss on held-out data during training", "eval evaluation"},
      {"generation", "text samples during training", "sampling samples"},
      {"export", "the Hugging Face directory <run>/hf at the end of the run"},
      {"metrics", "what is logged, and how often", "logging logger"},
      {"profiling", "traces of whole steps: what ran when, on the host and on the device"},
  };
  return all;
}

std::vector<ConfigKey> model_keys() {
  using M = ModelConfig;
  return {
      {"model", "architecture",
       TextKey{field<&C::model, &M::architecture>, {"llama", "mistral", "qwen2", "qwen3"}}, "",
       "family; qwen2 has biases on q, k and v, qwen3 normalises q and k",
       "model.name model.flavor model.type model_type", true},
      shape<&M::vocab_size>("vocab_size", 0, "0: that of the tokenizer",
                            "padded_vocab_size n_vocab"),
      shape<&M::dim>("dim", 1, "width of the residual stream; required without initial_load_path",
                     "hidden_size n_embd d_model embed_dim hidden_dim"),
      shape<&M::num_layers>("num_layers", 1, "decoder blocks; required without initial_load_path",
                            "num_hidden_layers n_layer n_layers"),
      shape<&M::num_heads>("num_heads", 1, "query heads; required without initial_load_path",
                           "num_attention_heads n_head n_heads"),
      shape<&M::num_kv_heads>("num_kv_heads", 0,
                              "key and value heads, a divisor of num_heads; 0: num_heads",
                              "num_key_value_heads n_kv_heads n_kv_head"),
      shape<&M::head_dim>("head_dim", 0, "even; 0: dim / num_heads", ""),
      shape<&M::ffn_dim>("ffn_dim", 1,
                         "width inside the SwiGLU; required without initial_load_path",
                         "intermediate_size ffn_hidden_size n_inner"),
      shape<&M::max_seq_len>("max_seq_len", 1, "longest sequence, at least training.seq_len",
                             "max_position_embeddings block_size n_ctx max_context_length"),
      positive<&M::norm_eps>("norm_eps", "epsilon of RMSNorm", "rms_norm_eps"),
      positive<&M::initializer_range>("initializer_range", "standard deviation of initial weights",
                                      "init_std"),
      {"model", "tie_word_embeddings", BooleanKey{field<&C::model, &M::tie_word_embeddings>}, "",
       "the head shares the embedding's weight", "enable_weight_tying tied_embeddings", true},
      positive<&M::rope_theta>("rope_theta", "base of the rotary frequencies", "rope_base"),
      {"model", "rope_scaling",
       TextKey{field<&C::model, &M::rope_scaling>, {"none", "linear", "llama3"}}, "",
       "how rotary frequencies are stretched", "rope_type", true},
      positive<&M::rope_factor>("rope_factor", "stretch of rope_scaling linear and llama3",
                                "scaling_factor"),
      positive<&M::rope_low_freq_factor>(
          "rope_low_freq_factor", "llama3: longer wavelengths than original / this are stretched",
          "low_freq_factor"),
      positive<&M::rope_high_freq_factor>(
          "rope_high_freq_factor", "llama3: shorter wavelengths than original / this are kept",
          "high_freq_factor"),
      shape<&M::rope_original_max_seq_len>("rope_original_max_seq_len", 1,
                                           "llama3: sequence length before the stretch",
                                           "original_max_position_embeddings"),
      {"model", "initial_load_path", TextKey{field<&C::model, &M::initial_load_path>}, "",
       "Hugging Face directory: shape from its config.json, weights from its safetensors; excludes "
       "the keys of the shape",
       "hf_assets_path base_model pretrained_model_name_or_path"},
  };
}

std::vector<ConfigKey> data_keys() {
  using T = TokenizerConfig;
  using D = DataConfig;
  return {
      {"tokenizer", "kind",
       TextKey{field<&C::tokenizer, &T::kind>,
               {"bytes", "huggingface", "gpt2", "sentencepiece", "none"}},
       "", "required; none: the data are token ids already",
       "tokenizer_type tokenizer.type tokenizer.name"},
      {"tokenizer", "path", TextKey{field<&C::tokenizer, &T::path>}, "",
       "tokenizer.json or its directory, directory of encoder.json and vocab.bpe (gpt2), .model "
       "file (sentencepiece); huggingface: empty takes model.initial_load_path",
       "tokenizer_path training.tokenizer_path model.tokenizer_path"},
      {"tokenizer", "train_vocab_size",
       IntegerKey{field<&C::tokenizer, &T::train_vocab_size>, 0, 1 << 24}, "entries",
       "huggingface without path: train a byte-level BPE of this size on the training text first; "
       "0: do not",
       ""},
      {"data", "train", ListKey{field<&C::data, &D::train>}, "",
       "required; files, globs (** included), directories: text, .jsonl, .parquet, .bin; relative "
       "to the "
       "current directory, or to the repository where that has no such file; [random_tokens] for "
       "benchmarks",
       "training.dataset training.dataset_path data.dataset data.dataset_path data.path"},
      {"data", "validation", ListKey{field<&C::data, &D::validation>}, "",
       "held-out sources, as data.train", "validation.dataset validation.dataset_path val"},
      {"data", "validation_fraction",
       NumberKey{
           .field = field<&C::data, &D::validation_fraction>, .max = 1.0, .max_excluded = true},
       "", "share of data.train to hold out instead of data.validation", "val_fraction val_split"},
      {"data", "weights", ListKey{field<&C::data, &D::weights>}, "",
       "shares of the samples, one for each entry of data.train; empty: all entries are one stream",
       "mixture blend data_weights probabilities interleave"},
      {"data", "packing", TextKey{field<&C::data, &D::packing>, {"stream", "documents"}}, "",
       "a window is cut from the stream of documents, or holds whole documents that do not see "
       "each "
       "other",
       "packed pack sample_packing dataset.packed packing_strategy"},
      {"data", "text_field", TextKey{field<&C::data, &D::text_field>}, "",
       "field of a .jsonl line, column of a .parquet file, that holds the text",
       "text_column content_field"},
      {"data", "chat_template", TextKey{field<&C::data, &D::chat_template>}, "",
       "lines of .jsonl are conversations (messages), written by this: chatml, llama3, mistral, "
       "gemma, tokenizer (its own) or a Jinja file; empty: they are texts",
       "prompt_template conversation_template chat_format"},
      {"data", "train_on_input", BooleanKey{field<&C::data, &D::train_on_input>}, "",
       "the loss takes in what others say in a conversation, too", "train_on_prompt"},
      {"data", "invalid_utf8", TextKey{field<&C::data, &D::invalid_utf8>, {"error", "replace"}}, "",
       "stop at bytes that are not UTF-8, or read U+FFFD", ""},
      {"data", "cache_dir", TextKey{field<&C::data, &D::cache_dir>}, "",
       "where tokenized data are kept and found again, by `data prepare` too; empty: "
       "$NARROWGAUGE_CACHE/tokens, or ~/.cache/narrowgauge/tokens",
       ""},
  };
}

std::vector<ConfigKey> training_keys() {
  using T = TrainingConfig;
  return {
      {"training", "steps", IntegerKey{field<&C::training, &T::steps>, 1, kMaxSteps}, "steps",
       "optimizer steps of the whole run, resumed parts included",
       "max_steps train_steps max_iters epochs num_epochs num_train_epochs"},
      {"training", "seq_len", IntegerKey{field<&C::training, &T::seq_len>, 1, kMaxTokens}, "tokens",
       "tokens in a window", "sequence_length seq_length max_length block_size"},
      {"training", "local_batch_size",
       IntegerKey{field<&C::training, &T::local_batch_size>, 1, kMaxWindows}, "windows",
       "of one rank in one forward pass",
       "batch_size micro_batch_size per_device_train_batch_size"},
      {"training", "global_batch_size",
       IntegerKey{field<&C::training, &T::global_batch_size>, -1, kMaxWindows}, "windows",
       "of one step over all ranks; more than local_batch_size x ranks accumulates gradients; -1: "
       "exactly that",
       "total_batch_size gradient_accumulation_steps grad_accum_steps"},
      {"training", "max_norm", NumberKey{.field = field<&C::training, &T::max_norm>}, "",
       "gradients are clipped to this global norm; 0: they are not",
       "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clipping"},
      {"training", "seed", IntegerKey{field<&C::training, &T::seed>, 0}, "",
       "of initial weights, data order and samples", ""},
      {"training", "dtype", TextKey{field<&C::training, &T::dtype>, {"float32", "bfloat16"}}, "",
       "of the parameters themselves; bfloat16 wants optimizer.bf16_stochastic_round",
       "model_dtype master_dtype"},
      {"training", "mixed_precision_param",
       TextKey{field<&C::training, &T::mixed_precision_param>, {"bfloat16", "float32"}}, "",
       "dtype of compute; the parameters themselves have training.dtype",
       "param_dtype training.precision training.bf16"},
      {"training", "mixed_precision_reduce",
       TextKey{field<&C::training, &T::mixed_precision_reduce>, {"float32", "bfloat16"}}, "",
       "dtype in which ranks sum gradients", "reduce_dtype"},
      {"training", "device", TextKey{field<&C::training, &T::device>, {"auto", "cpu", "cuda"}}, "",
       "auto: cuda where there is one", ""},
      {"training", "num_threads", IntegerKey{field<&C::training, &T::num_threads>, 0, 4096},
       "threads", "of one rank; 0: its share of the cores", ""},
      {"training", "enable_cpu_offload", BooleanKey{field<&C::training, &T::enable_cpu_offload>},
       "", "parameters, gradients and optimizer stay in the CPU's memory; a GPU gets what it needs",
       "cpu_offload offload_params"},
      {"training", "max_skipped_steps",
       IntegerKey{field<&C::training, &T::max_skipped_steps>, 0, kMaxSteps}, "steps",
       "steps in a row whose loss or gradient is not finite and which are not applied; one more "
       "ends the run",
       "max_nan_steps check_for_nan_in_loss_and_grad"},
      {"training", "sigma_factor", NumberKey{.field = field<&C::training, &T::sigma_factor>}, "",
       "a loss so many standard deviations above the mean of the last ones takes the run back to "
       "its last checkpoint, and on from there behind the batches since; 0: it does not",
       "skip_update_lossz loss_spike_zscore"},
      {"training", "rolling_interval_length",
       IntegerKey{field<&C::training, &T::rolling_interval_length>, 4, 1 << 20}, "steps",
       "losses that sigma_factor looks back on, at least half of them", "loss_spike_window"},
      {"training", "check_weight_hash_interval",
       IntegerKey{field<&C::training, &T::check_weight_hash_interval>, 0, kMaxSteps}, "steps",
       "between comparisons of what several ranks ought to hold alike, by hash; 0: never",
       "check_weight_hash_across_dp_replicas_interval"},
  };
}

std::vector<ConfigKey> optimizer_keys() {
  using O = OptimizerConfig;
  using L = LrSchedulerConfig;
  return {
      {"optimizer", "name",
       TextKey{field<&C::optimizer, &O::name>,
               {"AdamW", "Adam", "AdamW8bit", "AdamW4bit", "AdamWFp8", "Muon"}},
       "",
       "update rule; 8bit, 4bit and Fp8 are the moments' formats; Muon is for hidden matrices, the "
       "rest gets AdamW",
       "optimizer.type training.optimizer optim"},
      {"optimizer", "lr", NumberKey{.field = field<&C::optimizer, &O::lr>, .min_excluded = true},
       "", "learning rate after warm-up, before decay", "learning_rate max_lr"},
      {"optimizer", "beta1",
       NumberKey{.field = field<&C::optimizer, &O::beta1>, .max = 1.0, .max_excluded = true}, "",
       "decay of the gradient's mean", "adam_beta1"},
      {"optimizer", "beta2",
       NumberKey{.field = field<&C::optimizer, &O::beta2>, .max = 1.0, .max_excluded = true}, "",
       "decay of the gradient's mean square", "adam_beta2"},
      {"optimizer", "eps", NumberKey{.field = field<&C::optimizer, &O::eps>, .min_excluded = true},
       "", "added to the denominator", "adam_epsilon adam_eps epsilon"},
      {"optimizer", "weight_decay", NumberKey{.field = field<&C::optimizer, &O::weight_decay>}, "",
       "decoupled, a step multiplies weights by 1 - lr x this", "wd"},
      {"optimizer", "decay_norms_and_embeddings",
       BooleanKey{field<&C::optimizer, &O::decay_norms_and_embeddings>}, "",
       "weight decay reaches them too", ""},
      {"optimizer", "parameter_groups", ListKey{field<&C::optimizer, &O::parameter_groups>}, "",
       "rules like \"layers.0.* lr_scale=0.5 weight_decay=0\" or \"embed_tokens.* frozen\"; the "
       "first whose pattern matches a parameter's name decides",
       "param_groups"},
      {"optimizer", "state_dtype",
       TextKey{field<&C::optimizer, &O::state_dtype>, {"float32", "bfloat16"}}, "",
       "dtype of the moments of AdamW and Adam", ""},
      {"optimizer", "bf16_stochastic_round",
       BooleanKey{field<&C::optimizer, &O::bf16_stochastic_round>}, "",
       "parameters of training.dtype bfloat16 are rounded at random, right on average", ""},
      {"optimizer", "cpu_offload", BooleanKey{field<&C::optimizer, &O::cpu_offload>}, "",
       "the optimizer's state and its step stay on the CPU when training on a GPU", ""},
      {"optimizer", "early_step_in_backward",
       BooleanKey{field<&C::optimizer, &O::early_step_in_backward>}, "",
       "apply each gradient in backward and drop it; excludes clipping (training.max_norm 0)",
       "optimizer_in_bwd optimizer_in_backward in_backward"},
      {"optimizer", "momentum",
       NumberKey{.field = field<&C::optimizer, &O::momentum>, .max = 1.0, .max_excluded = true}, "",
       "of Muon", "muon_momentum"},
      {"lr_scheduler", "warmup_steps",
       IntegerKey{field<&C::lr_scheduler, &L::warmup_steps>, 0, kMaxSteps}, "steps",
       "linear rise from 0; a shorter run ends in it", "warmup warmup_iters num_warmup_steps"},
      {"lr_scheduler", "decay_ratio",
       NumberKey{.field = field<&C::lr_scheduler, &L::decay_ratio>, .max = 1.0}, "",
       "share of training.steps spent in decay, at the end; 1: all that follows warm-up",
       "lr_decay_ratio"},
      {"lr_scheduler", "decay_type",
       TextKey{field<&C::lr_scheduler, &L::decay_type>, {"constant", "linear", "cosine", "sqrt"}},
       "", "shape of the decay", "lr_decay_type lr_scheduler_type lr_scheduler.type schedule"},
      {"lr_scheduler", "min_lr_factor",
       NumberKey{.field = field<&C::lr_scheduler, &L::min_lr_factor>, .max = 1.0}, "",
       "share of optimizer.lr that is left at the end", "lr_min min_lr min_lr_ratio"},
  };
}

std::vector<ConfigKey> float8_keys() {
  using F = Float8Config;
  return {
      {"float8", "recipe_name",
       TextKey{field<&C::float8, &F::recipe_name>,
               {"none", "tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise",
                "mxfp8"}},
       "", "how operands are scaled and which products are in fp8", "float8.recipe fp8_recipe"},
      {"float8", "filter_fqns", ListKey{field<&C::float8, &F::filter_fqns>}, "",
       "linears that stay in high precision: parts of names, or globs of whole names; "
       "auto_filter_small_kn: those too small to gain",
       "ignored_layers"},
      {"float8", "enable_fsdp_float8_all_gather",
       BooleanKey{field<&C::float8, &F::enable_fsdp_float8_all_gather>}, "",
       "weights travel between ranks as fp8, a byte an element; tensorwise, rowwise and delayed",
       "fp8_param_gather fp8_all_gather"},
      {"float8", "pad_inner_dim", BooleanKey{field<&C::float8, &F::pad_inner_dim>}, "",
       "also convert linears whose sizes are no multiples of 16", ""},
      {"float8", "casts", ListKey{field<&C::float8, &F::casts>}, "",
       "changes to the recipe, operand by operand, such as [grad_output=e4m3 rowwise]; see "
       "docs/FLOAT8.md",
       "cast_config cast_configs"},
      {"float8", "use_fast_accum", ListKey{field<&C::float8, &F::use_fast_accum>}, "",
       "products that may sum in a GPU's shorter accumulator: output, grad_input, grad_weight",
       "fast_accum"},
      {"float8", "amax_history_len",
       IntegerKey{field<&C::float8, &F::amax_history_len>, 1, 1 << 16}, "steps",
       "delayed: how many are remembered", "history_len fp8_amax_history_len"},
      {"float8", "amax_compute_algo",
       TextKey{field<&C::float8, &F::amax_compute_algo>, {"max", "most_recent"}}, "",
       "delayed: which of them gives the scale", "scale_fn_name fp8_amax_compute_algo"},
      {"float8", "emulate", BooleanKey{field<&C::float8, &F::emulate>}, "",
       "fp32 products of dequantized operands: the slow reference", ""},
      {"float8", "health_interval",
       IntegerKey{field<&C::float8, &F::health_interval>, 0, kMaxSteps}, "steps",
       "between samples of saturated and underflowed shares and of scales for metrics.jsonl; 0: "
       "none",
       ""},
  };
}

std::vector<ConfigKey> sparsity_keys() {
  using S = SparsityConfig;
  return {
      {"sparsity", "kind",
       TextKey{field<&C::sparsity, &S::kind>,
               {"none", "semi_structured", "semi_structured_activation", "pruned"}},
       "",
       "what of a linear is 2:4: its weight, or its input; pruned: the zeros of "
       "model.initial_load_path stay",
       "sparsity.type"},
      {"sparsity", "algorithm",
       TextKey{field<&C::sparsity, &S::algorithm>,
               {"optimal", "largest_abs_values_greedy", "causal1122"}},
       "", "how the elements of a 4x4 tile that stay are chosen", ""},
      {"sparsity", "gradient",
       TextKey{field<&C::sparsity, &S::gradient>, {"straight_through", "masked"}}, "",
       "of the masked weight: passes to all of the weight, or to what the mask keeps", "ste"},
      {"sparsity", "sr_ste_decay",
       NumberKey{.field = field<&C::sparsity, &S::sr_ste_decay>, .max = 1e3}, "",
       "added to the gradient: this times the weights that are masked (SR-STE)", ""},
      {"sparsity", "start_step", IntegerKey{field<&C::sparsity, &S::start_step>, 1, kMaxSteps},
       "steps", "first sparse step; dense before", ""},
      {"sparsity", "end_step", IntegerKey{field<&C::sparsity, &S::end_step>, 0, kMaxSteps}, "steps",
       "last sparse step, dense after; 0: the run ends sparse, with zeros in its weights", ""},
      {"sparsity", "mask_interval",
       IntegerKey{field<&C::sparsity, &S::mask_interval>, 1, kMaxSteps}, "steps",
       "from one choice of masks to the next", ""},
      {"sparsity", "filter_fqns", ListKey{field<&C::sparsity, &S::filter_fqns>}, "",
       "linears that are left alone: parts of names", ""},
  };
}

std::vector<ConfigKey> qat_keys() {
  using Q = QATConfig;
  using D = DistillationConfig;
  using R = LoRAConfig;
  return {
      {"qat", "scheme",
       TextKey{field<&C::qat, &Q::scheme>,
               {"none", "8da4w", "int8-dynamic-act-int4-weight", "int8-dynamic-act-intx-weight",
                "int4-weight-only", "intx-weight-only", "int8-weight-only",
                "int8-dynamic-act-int8-weight", "float8-weight-only",
                "float8-dynamic-act-float8-weight", "float8-act-int4-weight", "mxfp8", "mxfp4",
                "nvfp4", "gguf-q4_0", "gguf-q8_0"}},
       "", "how the weights of linears will be written and, where it says so, their inputs",
       "qat_scheme quantizer weight_dtype"},
      {"qat", "group_size", IntegerKey{field<&C::qat, &Q::group_size>, -1, kMaxSize}, "columns",
       "that share a scale; 0: the scheme's own, -1: a whole row", "groupsize"},
      {"qat", "bits", IntegerKey{field<&C::qat, &Q::bits>, 0, 8}, "",
       "of the intx schemes' weights; 0: the scheme's own", "nbits"},
      {"qat", "overrides", ListKey{field<&C::qat, &Q::overrides>}, "",
       "rules like \"layers.0.*=none\", \"re:.*down_proj=int8-weight-only\" or "
       "\"lm_head=intx-weight-only bits=4 group_size=32\"; the first that matches a layer decides; "
       "the head and the embedding take part only so",
       "modules_to_not_convert fqn_to_config"},
      {"qat", "fake_quant_after_n_steps",
       IntegerKey{field<&C::qat, &Q::fake_quant_after_n_steps>, 0, kMaxSteps}, "steps",
       "in high precision before fake quantization begins", ""},
      {"qat", "learned_ranges", BooleanKey{field<&C::qat, &Q::learned_ranges>}, "",
       "scales of weights, and zero points that are values, train too (LSQ); they begin with the "
       "least squared error",
       "range_learning"},
      {"distillation", "weight",
       NumberKey{.field = field<&C::distillation, &D::weight>, .max = 1.0}, "",
       "share in the loss of the divergence from the probabilities of model.initial_load_path; the "
       "cross entropy has the rest; 0: no distillation",
       "kd_ratio distill_weight"},
      {"distillation", "temperature",
       NumberKey{.field = field<&C::distillation, &D::temperature>, .min_excluded = true}, "",
       "logits of both are divided by it for the divergence", "kd_temperature"},
      {"lora", "rank", IntegerKey{field<&C::lora, &R::rank>, 0, kMaxSize}, "",
       "of the adapters; 0: no adapters, all weights are trained", "lora_rank lora.r"},
      {"lora", "alpha", NumberKey{.field = field<&C::lora, &R::alpha>, .min_excluded = true}, "",
       "the adapter's product counts alpha / rank times", "lora_alpha"},
      {"lora", "dropout",
       NumberKey{.field = field<&C::lora, &R::dropout>, .max = 1.0, .max_excluded = true}, "",
       "share of the adapters' inputs that is dropped while training, never of the linears' own",
       "lora_dropout"},
      {"lora", "targets", ListKey{field<&C::lora, &R::targets>}, "",
       "names or globs of the linears that get adapters, from the end of the name",
       "target_modules"},
      {"lora", "modules_to_save", ListKey{field<&C::lora, &R::modules_to_save>}, "",
       "names or globs of layers that train in full beside the adapters and are saved with them: "
       "linears, norms, embed_tokens, lm_head",
       "trainable_modules"},
  };
}

std::vector<ConfigKey> parallelism_keys() {
  using P = ParallelismConfig;
  using A = ActivationCheckpointConfig;
  using M = CommConfig;
  return {
      {"parallelism", "data_parallel_replicate_degree",
       IntegerKey{field<&C::parallelism, &P::data_parallel_replicate_degree>, 1, 1 << 20}, "ranks",
       "copies of the model", "dp_replicate"},
      {"parallelism", "data_parallel_shard_degree",
       IntegerKey{field<&C::parallelism, &P::data_parallel_shard_degree>, -1, 1 << 20}, "ranks",
       "ranks that share one copy; -1: all that are left", "dp_shard data_parallel_degree"},
      {"parallelism", "fsdp_reshard_after_forward",
       TextKey{field<&C::parallelism, &P::fsdp_reshard_after_forward>,
               {"default", "always", "never"},
               2},
       "",
       "free gathered parameters between forward and backward; default: in blocks, not in the "
       "root; a number n: n neighbouring ranks keep one copy among them",
       "reshard_after_forward"},
      {"activation_checkpoint", "mode",
       TextKey{field<&C::activation_checkpoint, &A::mode>, {"none", "full", "selective"}}, "",
       "full: a block keeps only its input; selective: as selective_ac_option says; results keep "
       "their bits",
       "gradient_checkpointing enable_activation_checkpointing recompute "
       "activation_checkpoint.enable activation_checkpoint.enabled"},
      {"activation_checkpoint", "selective_ac_option",
       TextKey{field<&C::activation_checkpoint, &A::selective_ac_option>, {"op"}, 1}, "",
       "op: blocks keep the outputs of matrix products and attention and recompute norms and the "
       "SwiGLU; a number n: every n-th block keeps only its input",
       "selective_checkpointing"},
      {"comm", "init_timeout_seconds",
       IntegerKey{field<&C::comm, &M::init_timeout_seconds>, 1, kMaxSeconds}, "seconds",
       "a collective may take up to the end of the first step; rank 0 may read data meanwhile", ""},
      {"comm", "train_timeout_seconds",
       IntegerKey{field<&C::comm, &M::train_timeout_seconds>, 1, kMaxSeconds}, "seconds",
       "a collective may take afterwards; past it the run ends and names the ranks that are "
       "missing",
       "timeout nccl_timeout dist_timeout"},
      {"comm", "trace_buf_size", IntegerKey{field<&C::comm, &M::trace_buf_size>, 1, 1 << 24},
       "collectives", "the last ones, kept for <run>/flight_record when a run fails", ""},
  };
}

std::vector<ConfigKey> run_keys() {
  using S = CheckpointConfig;
  using V = ValidationConfig;
  using G = GenerationConfig;
  return {
      {"checkpoint", "enable", BooleanKey{field<&C::checkpoint, &S::enable>}, "",
       "save to <run>/checkpoints, at the end and at a signal too, and resume from there",
       "enable_checkpoint"},
      {"checkpoint", "interval", IntegerKey{field<&C::checkpoint, &S::interval>, 1, kMaxSteps},
       "steps", "between checkpoints",
       "save_interval save_steps save_every checkpoint.freq checkpoint.every"},
      {"checkpoint", "keep_latest_k",
       IntegerKey{field<&C::checkpoint, &S::keep_latest_k>, 0, kMaxSteps}, "checkpoints",
       "older ones are removed; 0: none is", "save_total_limit"},
      {"checkpoint", "load_step", IntegerKey{field<&C::checkpoint, &S::load_step>, -1, kMaxSteps},
       "step", "resume from this checkpoint; -1: the newest complete one",
       "checkpoint.resume resume_from_checkpoint"},
      {"checkpoint", "async_mode",
       TextKey{field<&C::checkpoint, &S::async_mode>, {"async", "disabled"}}, "",
       "async: a step waits for a copy in memory only, which a thread writes; disabled: it waits "
       "for the disk",
       "async_save"},
      {"checkpoint", "allow_changes", ListKey{field<&C::checkpoint, &S::allow_changes>}, "",
       "keys that may differ from those of the run so far, though it then trains on something else",
       "override_args"},
      {"validation", "interval", IntegerKey{field<&C::validation, &V::interval>, 0, kMaxSteps},
       "steps", "between validations; 0: none",
       "validation.freq eval_interval eval_steps val_interval"},
      {"validation", "max_batches",
       IntegerKey{field<&C::validation, &V::max_batches>, 0, kMaxSteps}, "batches",
       "of each rank in one validation; 0: all data",
       "validation.steps validation.max_steps eval_iters"},
      {"validation", "local_batch_size",
       IntegerKey{field<&C::validation, &V::local_batch_size>, 0, kMaxWindows}, "windows",
       "0: training.local_batch_size", "validation.batch_size eval_batch_size"},
      {"generation", "interval", IntegerKey{field<&C::generation, &G::interval>, 0, kMaxSteps},
       "steps", "between samples; 0: none", "sample_interval sample_every generation.freq"},
      {"generation", "prompt", TextKey{field<&C::generation, &G::prompt>}, "",
       "where a sample begins", "start"},
      {"generation", "max_new_tokens",
       IntegerKey{field<&C::generation, &G::max_new_tokens>, 1, kMaxTokens}, "tokens",
       "length of a sample", "max_tokens num_tokens"},
      {"generation", "temperature", NumberKey{.field = field<&C::generation, &G::temperature>}, "",
       "0: always the likeliest token", ""},
      {"generation", "top_p",
       NumberKey{.field = field<&C::generation, &G::top_p>, .max = 1.0, .min_excluded = true}, "",
       "sample among the likeliest tokens that hold this share of probability", ""},
      {"export", "enable", BooleanKey{field<&C::export_, &ExportConfig::enable>}, "", "write it",
       "checkpoint.last_save_in_hf"},
      {"export", "dtype",
       TextKey{field<&C::export_, &ExportConfig::dtype>, {"float32", "bfloat16"}}, "",
       "of the exported weights", "checkpoint.export_dtype torch_dtype"},
      {"metrics", "log_interval",
       IntegerKey{field<&C::metrics, &MetricsConfig::log_interval>, 1, kMaxSteps}, "steps",
       "between log lines; the first step is always logged",
       "log_freq logging_steps log_every log_every_n_steps metrics.interval"},
  };
}

std::vector<ConfigKey> profiling_keys() {
  using P = ProfilingConfig;
  return {
      {"profiling", "enable_profiling", BooleanKey{field<&C::profiling, &P::enable_profiling>}, "",
       "write traces and a table of where the time of a step went while training", "profile"},
      {"profiling", "save_traces_folder", TextKey{field<&C::profiling, &P::save_traces_folder>}, "",
       "below job.run_dir: iteration_STEP/rankN_trace.json, which chrome://tracing and Perfetto "
       "open, and rankN_kernels.txt, on a CPU rankN_operators.txt: where the time went",
       "trace_dir"},
      {"profiling", "profile_freq",
       IntegerKey{field<&C::profiling, &P::profile_freq>, 1, kMaxSteps}, "steps",
       "between traces, each of which ends with a step divisible by this", ""},
      {"profiling", "profiler_active",
       IntegerKey{field<&C::profiling, &P::profiler_active>, 1, kMaxSteps}, "steps",
       "in a trace; with profiler_warmup at most profile_freq", ""},
      {"profiling", "profiler_warmup",
       IntegerKey{field<&C::profiling, &P::profiler_warmup>, 0, kMaxSteps}, "steps",
       "before a trace with the profiler on and nothing kept", ""},
  };
}

std::vector<ConfigKey> all_keys() {
  std::vector<ConfigKey> all = {
      {"job", "run_dir", TextKey{field<&C::job, &JobConfig::run_dir>}, "",
       "required; everything the run writes goes here",
       "dump_folder output_dir out_dir save_dir job.name checkpoint.folder"}};
  for (const auto& group :
       {model_keys(), data_keys(), training_keys(), optimizer_keys(), float8_keys(),
        sparsity_keys(), qat_keys(), parallelism_keys(), run_keys(), profiling_keys()}) {
    all.insert(all.end(), group.begin(), group.end());
  }
  return all;
}

std::string interval_text(const NumberKey& key) {
  if (key.max == std::numeric_limits<double>::infinity()) {
    return (key.min_excluded ? " above " : " of at least ") + format_number(key.min);
  }
  return std::string(" in ") + (key.min_excluded ? "(" : "[") + format_number(key.min) + ", " +
         format_number(key.max) + (key.max_excluded ? ")" : "]");
}

struct ValuesInWords {
  std::string operator()(const IntegerKey& key) const {
    const bool bounded = key.max != std::numeric_limits<int64_t>::max();
    const std::string min = std::to_string(key.min);
    return bounded ? "an integer in [" + min + ", " + std::to_string(key.max) + "]"
                   : "an integer of at least " + min;
  }
  std::string operator()(const NumberKey& key) const { return "a number" + interval_text(key); }
  std::string operator()(const BooleanKey&) const { return "true or false"; }
  std::string operator()(const TextKey& key) const {
    const std::string choices = key.choices.empty()       ? "text"
                                : key.choices.size() == 1 ? std::string(key.choices.front())
                                                          : "one of " + join(key.choices);
    return key.or_integer_from
               ? choices + " or an integer of at least " + std::to_string(*key.or_integer_from)
               : choices;
  }
  std::string operator()(const ListKey&) const { return "a list such as [a.txt, b.txt]"; }
};

}  // namespace

std::span<const ConfigSection> config_sections() { return sections(); }

std::span<const ConfigKey> config_schema() {
  static const std::vector<ConfigKey> schema = all_keys();
  return schema;
}

const ConfigKey* find_key(std::string_view section, std::string_view name) {
  for (const ConfigKey& key : config_schema()) {
    if (key.section == section && key.name == name) {
      return &key;
    }
  }
  return nullptr;
}

bool accepts(const TextKey& key, std::string_view text) {
  const auto& choices = key.choices;
  return choices.empty() || std::find(choices.begin(), choices.end(), text) != choices.end() ||
         (key.or_integer_from && parse_integer(text).value.value_or(-1) >= *key.or_integer_from);
}

std::string describe_values(const ConfigKey& key) { return std::visit(ValuesInWords{}, key.value); }

}  // namespace narrowgauge::trainer
