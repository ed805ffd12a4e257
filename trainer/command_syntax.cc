#include "trainer/command_syntax.h"

#include <map>
#include <stdexcept>
#include <string>

namespace narrowgauge::trainer {
namespace {

using Argument = CommandArgument;
using Syntaxes = std::map<std::string_view, CommandSyntax>;

constexpr Argument kConfig = {"config", "CONFIG", "YAML file", "", Argument::kPositional, true};
constexpr Argument kOverrides = {"overrides", "KEY=VALUE", "section.key=value, after the file", "",
                                 Argument::kPositionalList};
constexpr Argument kModel = {
    "model", "DIR", "Hugging Face directory, or a run directory", "", Argument::kOption, true};
constexpr Argument kModelTokenizer = {
    "tokenizer", "PATH", "bytes, or a tokenizer file or directory, instead of the model's"};
constexpr Argument kDevice = {"device", "NAME", "auto, cpu or cuda", "auto"};
constexpr Argument kJson = {"json", "", "print one JSON object"};
constexpr Argument kKind = {"kind", "KIND",
                            "huggingface, gpt2 or sentencepiece; default: what PATH looks like"};
constexpr Argument kInvalidUtf8 = {
    "invalid-utf8", "WHAT", "error, or replace: read U+FFFD for bytes that are not UTF-8", "error"};
constexpr Argument kField = {"field", "NAME",
                             "of .jsonl objects and .parquet rows, which holds the text", "text"};
constexpr Argument kThreads = {"threads", "N", "0: one for each processor", "0"};
constexpr Argument kSources = {"sources",
                               "SOURCE",
                               "files, directories and globs of text, .jsonl and .parquet",
                               "",
                               Argument::kPositionalList,
                               true};

void add_training(Syntaxes& all) {
  all["train"] = {
      "Trains the model of a configuration, or resumes the run its job.run_dir holds.",
      "CONFIG [section.key=value ...] [--dry-run]",
      {kConfig, kOverrides, {"dry-run", "", "check data, model, ranks, memory and disk, and end"}},
      "  narrowgauge train configs/quickstart.yaml\n"
      "  narrowgauge train configs/shakespeare_char.yaml training.steps=200 optimizer.lr=3.0e-4\n"
      "  mpirun -np 4 narrowgauge train configs/bench/llama_12m.yaml training.local_batch_size=2\n",
      "`narrowgauge help config` lists every key, as docs/CONFIG.md does.\n"
      "A run whose job.run_dir holds a checkpoint goes on from the newest one.\n"
      "SIGINT, SIGTERM and SIGUSR1 end it after a checkpoint with exit code 75: start it again to "
      "resume.\n"};
  all["validate"] = {
      "Checks a configuration without loading anything and prints it with all defaults.",
      "CONFIG [section.key=value ...] [--world-size N]",
      {kConfig, kOverrides, {"world-size", "N", "check that the mesh and the batch fit N ranks"}},
      "  narrowgauge validate configs/quickstart.yaml\n"
      "  narrowgauge validate configs/quickstart.yaml training.global_batch_size=64 "
      "--world-size 4\n"};
  all["plan"] = {
      "Tells what a run needs and how fast it would be, from its configuration alone.",
      "CONFIG [section.key=value ...] [options]",
      {kConfig,
       kOverrides,
       {"gpu", "NAME",
        "H100, H200, B200, A100, 4090 or cpu; default: what this machine would train on"},
       {"gpus", "N", "of a node, one rank each", "1"},
       {"nodes", "M", "how many", "1"},
       {"peak-tflops", "X", "bf16 peak of a GPU that is not listed; 0: the table's", "0"},
       {"memory-gib", "X", "its memory; 0: the table's", "0"},
       kJson},
      "  narrowgauge plan configs/quickstart.yaml\n"
      "  narrowgauge plan my.yaml training.local_batch_size=4 --gpu H200 --gpus 8 --nodes 4\n",
      "Prints the parameters, one rank's memory by kind, whether it fits and what would, and the\n"
      "time of a step by parts. Needs no GPU. Exit code 1 where the run does not fit.\n"};
  all["report"] = {
      "Writes a page about a run, or one that compares several: self-contained HTML.",
      "RUN [RUN ...] [--output FILE] [--csv]",
      {{"output", "FILE", "page to write; default: report.html in the first run"},
       {"csv", "", "write metrics.csv into each run instead"},
       {"runs", "RUN", "run directory", "", Argument::kPositionalList, true}},
      "  narrowgauge report runs/quickstart\n"
      "  narrowgauge report runs/bf16 runs/fp8 --output compare.html\n",
      "train writes the page of its own run when it ends, and <run>/tensorboard as it goes.\n"};
  all["bench"] = {
      "Times training steps of a configuration in several modes, in turn.",
      "CONFIG [section.key=value ...] [--modes MODE,...] [options]",
      {kConfig,
       kOverrides,
       {"modes", "MODE,...",
        "bf16, fp32, configured, float8.RECIPE, qat.SCHEME, sparsity.KIND or optimizer.NAME; "
        "default: bf16 and what is configured"},
       {"steps", "N", "to time in a process", "12"},
       {"warmup", "N", "steps before these", "3"},
       {"rounds", "N", "processes of each mode", "3"},
       {"json", "FILE", "write every figure there"},
       {"compare", "FILE", "what --json wrote another time: print the speed beside it"},
       {"fail-below", "R", "exit code 1 where a mode has less than R times that speed", "0"},
       {"profile", "", "print where the time of a step goes, of what is configured or of --modes"}},
      "  narrowgauge bench configs/bench/llama_12m.yaml "
      "--modes bf16,float8.tensorwise,float8.rowwise,qat.8da4w\n"
      "  narrowgauge bench my.yaml training.num_threads=4 --json today.json\n"
      "  narrowgauge bench my.yaml --compare yesterday.json --fail-below 0.95\n"
      "  narrowgauge bench my.yaml --profile\n",
      "Each mode trains in fresh processes, one in every round. ms/step is the median over all\n"
      "steps; speed is beside the first mode, the median over rounds of the ratio in a round, "
      "which\n"
      "holds on a machine whose speed drifts. Nothing is validated, saved or exported meanwhile.\n"
      "`narrowgauge bench convergence --help`: what a mode costs in quality.\n"
      "benchmarks/train_step.py times PyTorch and torchao on the same model.\n"};
  all["bench convergence"] = {
      "Trains variants of a configuration with several seeds and compares their final losses.",
      "FAMILY [section.key=value ...] [options]",
      {{"family", "FAMILY", "float8, sparsity, qat or optimizers", "", Argument::kPositional, true},
       kOverrides,
       {"config", "CONFIG", "YAML file", "configs/convergence/llama_3m.yaml"},
       {"output", "DIR", "folder of the runs; default: runs/convergence_FAMILY"},
       {"variant", "NAME", "may be given more than once; default: all of the family", "",
        Argument::kRepeatedOption},
       {"seeds", "N", "1, 2, ... N of each variant", "3"},
       {"jobs", "N", "runs at a time", "1"},
       {"threads", "N", "of each run", "1"},
       {"tolerance", "PERCENT", "by which a variant's mean may be above the reference's", "0.25"},
       {"table-only", "", "train nothing"}},
      "  narrowgauge bench convergence float8 'data.train=[tinyshakespeare.txt]' --jobs 2\n"
      "  narrowgauge bench convergence sparsity training.steps=3000 --variant dense --variant "
      "sparse\n",
      "The final loss is the mean over the validations of the last tenth of the steps; the table\n"
      "sets its mean over seeds beside the first variant's, and beside how far seeds are apart.\n"
      "DIR has the runs, table.json and report.html with the plots. Runs that are done are not\n"
      "repeated and interrupted ones go on: start it again. Exit code 1 if a run fails, or a "
      "variant\n"
      "that is meant to match the first is worse by more than the tolerance.\n"};
  all["test"] = {"Builds and runs every test. The launcher of the repository does it, no other.",
                 "[--slow] [BAZEL ARGUMENT ...]",
                 {{"slow", "", "the long tests too"}},
                 "  ./narrowgauge test //tests/data/...\n"};
}

void add_models(Syntaxes& all) {
  all["generate"] = {
      "Continues a prompt.",
      "--model DIR [--prompt TEXT] [options]",
      {kModel,
       kModelTokenizer,
       {"prompt", "TEXT", "where to begin"},
       {"chat-template", "TEMPLATE",
        "the prompt is a user's message; as data.chat_template, tokenizer is the model's own"},
       {"max-new-tokens", "N", "length of the continuation", "100"},
       {"temperature", "T", "0: always the likeliest token", "0.8"},
       {"top-p", "P", "sample among the likeliest tokens that hold this probability", "0.95"},
       {"seed", "N", "equal seeds, equal text", "42"},
       kDevice,
       kJson},
      "  narrowgauge generate --model runs/quickstart --prompt 'def forward(' --seed 7\n"
      "  narrowgauge generate --model runs/quickstart/hf --temperature 0 --json\n"
      "  narrowgauge generate --model runs/assistant --chat-template tokenizer --prompt 'Who are "
      "you?'\n"};
  all["eval"] = {
      "Measures a model, alone or beside others.",
      "--model DIR --data [TASK=]FILE[,...] [options]",
      {kModel,
       kModelTokenizer,
       {"tasks", "LIST", "some of perplexity, hellaswag, piqa and lambada", "perplexity"},
       {"data", "LIST",
        "files, globs or directories of a task's data, separated by commas; with several tasks "
        "each as TASK=FILE",
        "", Argument::kOption, true},
       {"compare", "LIST", "models of the same tokenizer to put beside --model on its text"},
       {"seq-len", "N", "window in tokens; 0: the model's longest, at most 2048", "0"},
       {"limit", "N", "items of a task to score; 0: all", "0"},
       kDevice,
       kJson},
      "  narrowgauge eval --model runs/quickstart --tasks perplexity --data held_out.txt "
      "--seq-len 256 --json\n"
      "  narrowgauge eval --model hf --tasks hellaswag,piqa --data "
      "hellaswag=hellaswag_val.jsonl,piqa=valid.jsonl\n"
      "  narrowgauge eval --model hf --compare hf_int4,hf_int8 --data held_out.txt\n",
      "Perplexity is per token, byte and word. Tasks are scored as lm-evaluation-harness does: "
      "acc,\n"
      "and acc_norm by characters; LAMBADA by greedy decoding. --compare adds the divergence of\n"
      "each model's distributions from those of --model, and how often both prefer one token.\n"};
  all["quantize"] = {
      "Rounds a trained model's weights to codes.",
      "--model DIR --output DIR --scheme NAME [options]",
      {kModel,
       {"output", "DIR", "where to write", "", Argument::kOption, true},
       {"scheme", "NAME", "how weights are written (docs/QUANTIZATION.md lists them), or auto", "",
        Argument::kOption, true},
       {"group-size", "N", "columns that share a scale; default: the scheme's"},
       {"bits", "N", "of the intx schemes"},
       {"mapping", "NAME", "of the intx schemes: symmetric or asymmetric"},
       {"method", "NAME", "rtn, hqq, gptq, awq or smoothquant", "rtn"},
       {"calibration", "LIST", "text files for gptq, awq, smoothquant and auto"},
       {"samples", "N", "windows of it, spread over the text", "128"},
       {"seq-len", "N", "tokens of a window; 0: the model's longest, at most 2048", "0"},
       {"act-order", "", "gptq: columns of large inputs first"},
       {"alpha", "A", "smoothquant: share of the inputs' sizes that moves into weights", "0.5"},
       {"min-sqnr-db", "X", "auto: what each linear's outputs must keep", "30"},
       {"include-head", "", "lm_head too; not with gptq, awq or smoothquant"},
       kModelTokenizer},
      "  narrowgauge quantize --model hf --scheme int8-weight-only --output hf_int8\n"
      "  narrowgauge quantize --model hf --scheme int4-weight-only --group-size 128 --method gptq "
      "--calibration text.jsonl --output hf_int4\n"
      "  narrowgauge quantize --model hf --scheme auto --min-sqnr-db 25 --calibration text.txt "
      "--output hf_auto\n",
      "Works block by block and keeps what is done in OUTPUT.partial: started again with the same\n"
      "arguments, it goes on. eval, generate and export take OUTPUT as a model.\n"};
  all["prune"] = {
      "Sets weights of a trained model to zero.",
      "--model DIR --output DIR --method NAME --pattern P [options]",
      {kModel,
       {"output", "DIR", "where to write a Hugging Face directory", "", Argument::kOption, true},
       {"method", "NAME", "magnitude, wanda or sparsegpt", "", Argument::kOption, true},
       {"pattern", "P", "what goes: a share (0.5), or all but K of each N neighbours (2:4, 4:8)",
        "0.5"},
       {"calibration", "LIST", "text files for wanda and sparsegpt"},
       {"samples", "N", "windows of it, spread over the text", "128"},
       {"seq-len", "N", "tokens of a window; 0: the model's longest, at most 2048", "0"},
       kModelTokenizer},
      "  narrowgauge prune --model hf --method sparsegpt --pattern 2:4 --calibration text.jsonl "
      "--output hf_24\n"
      "  narrowgauge train tune.yaml model.initial_load_path=hf_24 sparsity.kind=pruned\n",
      "The linears of the blocks are pruned, embedding and lm_head are not. Works block by block "
      "and\n"
      "keeps what is done in OUTPUT.partial: started again with the same arguments, it goes on.\n"
      "sparsity.kind pruned trains OUTPUT further with its zeros held.\n"};
  all["export"] = {
      "Writes a model for others to load, reads it back and proves it equal.",
      "MODEL [--format NAME] [--output PATH] [--dtype NAME] [--step N]",
      {{"model", "MODEL", "run directory, quantized model, or Hugging Face directory", "",
        Argument::kPositional, true},
       {"format", "NAME", "huggingface, torchao, compressed-tensors, fine-grained-fp8 or gguf",
        "huggingface"},
       {"output", "PATH", "where to write; default: MODEL/hf, MODEL/hf-FORMAT or MODEL/model.gguf"},
       {"dtype", "NAME",
        "of weights that are not quantized: auto, float32, bfloat16 or float16; auto is float32 "
        "for huggingface, else that of the model's forward",
        "auto"},
       kModelTokenizer,
       {"step", "N", "of a run's checkpoint; -1: the newest", "-1"},
       {"logits-tokens", "N", "compare the logits of N tokens afterwards; 0: none", "32"}},
      "  narrowgauge export runs/quickstart --dtype bfloat16 --output quickstart_bf16\n"
      "  narrowgauge export quantized_model --format torchao\n"
      "  narrowgauge export runs/quickstart --format gguf --output quickstart.gguf\n"};
  all["import"] = {"Turns a model of another program into a Hugging Face directory to start from.",
                   "FROM --output DIR",
                   {{"from", "FROM", "llama2.c .bin file, or Hugging Face directory", "",
                     Argument::kPositional, true},
                    {"output", "DIR", "where to write", "", Argument::kOption, true}},
                   "  narrowgauge import stories260K.bin --output stories260K\n"};
}

void add_checkpoints(Syntaxes& all) {
  constexpr Argument kPath = {
      "path", "PATH", "checkpoint; or run, its newest", "", Argument::kPositional, true};
  all["checkpoint list"] = {
      "Lists the checkpoints of a run in the order in which it would go on from them.",
      "RUN [--json]",
      {{"run", "RUN", "run directory, or its checkpoints/", "", Argument::kPositional, true},
       kJson},
      "  narrowgauge checkpoint list runs/quickstart\n",
      "Looks at manifests, headers and file sizes; `checkpoint verify` reads every byte.\n"};
  all["checkpoint verify"] = {
      "Reads every byte of a checkpoint, or of all of a run, and compares it with its hash.",
      "PATH [--json]",
      {{"path", "PATH", "checkpoint, or run: all of its checkpoints", "", Argument::kPositional,
        true},
       kJson},
      "  narrowgauge checkpoint verify runs/quickstart\n"
      "  narrowgauge checkpoint verify runs/quickstart/checkpoints/step-00000400\n",
      "Exit code 1 if anything is damaged or there is nothing; each line names file and tensor.\n"};
  all["checkpoint diff"] = {
      "Tells what two checkpoints do not have in common: settings, tensors, elements.",
      "PATH PATH [--json]",
      {{"paths", "PATH", "checkpoint; or run, its newest", "", Argument::kPositionalList, true},
       kJson},
      "  narrowgauge checkpoint diff runs/a runs/b\n"
      "  narrowgauge checkpoint diff run/checkpoints/step-00000100 run/checkpoints/step-00000200\n",
      "How many ranks wrote them makes no difference. Exit code 1 if they differ.\n"};
  all["checkpoint export"] = {
      "Writes the tensors of a checkpoint, whole, as one safetensors file.",
      "PATH --output FILE [--prefix TEXT]",
      {kPath,
       {"output", "FILE", "to write", "", Argument::kOption, true},
       {"prefix", "TEXT", "of the tensors to write, dropped from their names: model. or optimizer.",
        "model."}},
      "  narrowgauge checkpoint export runs/quickstart --output weights.safetensors\n",
      "Names and layout are training's; `narrowgauge export` writes a Hugging Face directory.\n"};
  all["checkpoint prune"] = {
      "Deletes old checkpoints of a run that is not training.",
      "RUN --keep K [--dry-run]",
      {{"run", "RUN", "run directory, or its checkpoints/", "", Argument::kPositional, true},
       {"keep", "K", "how many stay: the newest, the one `latest` names first", "",
        Argument::kOption, true},
       {"dry-run", "", "tell what would be deleted"}},
      "  narrowgauge checkpoint prune runs/quickstart --keep 1 --dry-run\n",
      "Deletes nothing unless one of those that stay is sound, and what killed saves left.\n"};
}

void add_tokenizers(Syntaxes& all) {
  constexpr Argument kTokenizer = {
      "tokenizer", "PATH", "bytes, or a tokenizer file or directory", "", Argument::kOption, true};
  all["tokenizer train"] = {
      "Trains a byte-level BPE on text and writes a tokenizer.json for Hugging Face tokenizers.",
      "--output FILE --vocab-size N [options] SOURCE ...",
      {{"output", "FILE", "tokenizer.json to write", "", Argument::kOption, true},
       {"vocab-size", "N", "entries, the 256 bytes and special tokens included", "",
        Argument::kOption, true},
       {"pre-tokenizer", "NAME", "llama3 or gpt2", "llama3"},
       {"special-token", "TEXT", "may be given more than once; the first ends documents",
        "<|endoftext|>", Argument::kRepeatedOption},
       kField,
       kInvalidUtf8,
       kThreads,
       kSources},
      "  narrowgauge tokenizer train --vocab-size 8000 --output tokenizer.json 'text/**/*.txt'\n",
      "Reads the first 256 MiB of text: more changes no merge that matters. Where FILE is named\n"
      "tokenizer.json, a tokenizer_config.json is written beside it for transformers.\n"};
  all["tokenizer encode"] = {
      "Prints the token ids of each line of standard input as a JSON array.",
      "--tokenizer PATH [options] < TEXT",
      {kTokenizer,
       kKind,
       {"json", "", "lines are JSON strings, so that a text may hold newlines"},
       {"document", "", "with the tokens that begin and end a document"},
       kInvalidUtf8},
      "  narrowgauge tokenizer encode --tokenizer tokenizer.json < text.txt\n"};
  all["tokenizer decode"] = {
      "Prints the text of each line of standard input, a JSON array of token ids.",
      "--tokenizer PATH [options] < IDS",
      {kTokenizer, kKind, {"json", "", "print JSON strings, so that a text may hold newlines"}},
      "  echo '[72, 105]' | narrowgauge tokenizer decode --tokenizer bytes\n"};
}

void add_data(Syntaxes& all) {
  all["data prepare"] = {
      "Tokenizes text once, ahead of the runs that name the same sources, tokenizer and options.",
      "[options] SOURCE ...",
      {{"tokenizer", "PATH", "bytes, or a tokenizer file or directory", "bytes"},
       kKind,
       kField,
       {"chat-template", "TEMPLATE", "lines of .jsonl are conversations; as data.chat_template"},
       {"train-on-input", "", "as data.train_on_input"},
       kInvalidUtf8,
       {"validation-fraction", "F", "say what a run with this fraction holds out", "0.05"},
       {"seq-len", "N", "say how data.packing documents fills windows of this length; 0: do not",
        "0"},
       {"cache-dir", "DIR",
        "default: $NARROWGAUGE_CACHE/tokens or ~/.cache/narrowgauge/tokens, as for train"},
       kThreads,
       kSources},
      "  narrowgauge data prepare --tokenizer tokenizer.json text/ 'more/**/*.jsonl'\n",
      "train does it by itself when it finds no cache.\n"};
  all["data inspect"] = {
      "Prints what a cache or a .bin file of token ids holds.",
      "[options] CACHE",
      {{"tokenizer", "PATH", "decode the first windows with it"},
       kKind,
       {"window", "N", "tokens of a window", "64"},
       {"windows", "N", "how many to print", "2"},
       {"verify", "", "read every token and compare the checksum"},
       {"cache", "CACHE", "file that prepare wrote, or .bin", "", Argument::kPositional, true}},
      "  narrowgauge data inspect cache/0123.tokens --tokenizer tokenizer.json --window 128\n"};
}

Syntaxes all_syntaxes() {
  Syntaxes all;
  add_training(all);
  add_models(all);
  add_checkpoints(all);
  add_tokenizers(all);
  add_data(all);
  return all;
}

}  // namespace

const CommandSyntax& command_syntax(std::string_view command) {
  static const Syntaxes all = all_syntaxes();
  const auto found = all.find(command);
  if (found == all.end()) {
    throw std::logic_error("no syntax for the subcommand " + std::string(command));
  }
  return found->second;
}

}  // namespace narrowgauge::trainer
