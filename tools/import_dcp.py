"""Turns a PyTorch Distributed Checkpoint of torchtitan's Llama into a Hugging Face directory to train or export from.

    tools/python.sh tools/import_dcp.py outputs/checkpoint/step-1000 --output llama --num-heads 32 --tokenizer assets/hf/Llama-3.1-8B
    narrowgauge train my.yaml model.initial_load_path=llama

Reads the model's tensors, whatever ranks wrote them, one file of the output at a time in memory; optimizer, schedule and
data position stay behind. The pickles inside are untrusted: .metadata may name nothing but torch's own record classes,
and tensors are loaded with weights_only. Weights lose nothing: torchtitan rotates neighbouring elements of a head, Hugging
Face its halves, so rows of wq and wk are permuted; values keep their dtype unless --dtype says otherwise.
"""
import argparse
import io
import json
import math
import pathlib
import pickle
import re
import shutil
import sys
import time

import torch
from safetensors.torch import save_file

# What a .metadata file of PyTorch 2.3 and later is made of.
RECORDS = {
    "torch.distributed.checkpoint.metadata": {"Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "StorageMeta",
                                              "ChunkStorageMetadata", "TensorProperties", "MetadataIndex",
                                              "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device", "float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
              "float8_e4m3fn", "float8_e5m2"},
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset"},
    "pathlib": {"PosixPath", "PurePosixPath"},
}
# torchtitan's name -> Hugging Face's; what stands in a layer, and what does not.
OF_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
WHOLE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
                   "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja", "generation_config.json")


class ImportFailure(Exception):
    """What is wrong with the input; a line for people."""


class RecordUnpickler(pickle.Unpickler):
    """Builds torch's checkpoint records and refuses everything else."""

    def find_class(self, module, name):
        if name not in RECORDS.get(module, ()):
            raise ImportFailure(f".metadata names {module}.{name}, which no checkpoint needs; refused")
        return super().find_class(module, name)


class DistributedCheckpoint:
    """The tensors of a DCP folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        path = self.folder / ".metadata"
        if not path.is_file():
            raise ImportFailure(f"{folder}: expected a .metadata file; this is no complete DCP folder")
        try:
            with open(path, "rb") as file:
                self.metadata = RecordUnpickler(file).load()
            self.tensors = {name: entry for name, entry in self.metadata.state_dict_metadata.items()
                            if hasattr(entry, "chunks")}
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise ImportFailure(f"{path}: not a checkpoint's metadata: {error!r}") from error
        self.places = {(index.fqn, tuple(index.offset or ())): info for index, info in self.metadata.storage_data.items()}

    def read_chunk(self, name, chunk):
        place = self.places.get((name, tuple(chunk.offsets)))
        if place is None:
            raise ImportFailure(f"{self.folder}: tensor {name}: nothing is stored for the chunk at {tuple(chunk.offsets)}")
        if getattr(place, "transform_descriptors", None):
            raise ImportFailure(f"{self.folder}: tensor {name} is stored compressed, which is not supported")
        path = self.folder / place.relative_path
        if path.resolve().parent != self.folder.resolve():
            raise ImportFailure(f"{self.folder}: tensor {name} lies outside of the folder: {place.relative_path}")
        with open(path, "rb") as file:
            file.seek(place.offset)
            blob = file.read(place.length)
        if len(blob) != place.length:
            raise ImportFailure(f"{path}: tensor {name}: expected {place.length} bytes at {place.offset}, got {len(blob)}")
        try:
            tensor = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ImportFailure(f"{path}: tensor {name} cannot be read: {error}") from error
        if not isinstance(tensor, torch.Tensor) or tensor.shape != chunk.sizes:
            raise ImportFailure(f"{path}: tensor {name}: expected shape {tuple(chunk.sizes)}, got {getattr(tensor, 'shape', None)}")
        return tensor

    def read(self, name):
        """The whole tensor. Chunks must cover it exactly."""
        entry = self.tensors[name]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != whole.numel():
            raise ImportFailure(f"{self.folder}: tensor {name}: its chunks do not cover its shape {tuple(entry.size)} once")
        for chunk in entry.chunks:
            box = tuple(slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes))
            whole[box] = self.read_chunk(name, chunk)
        return whole


def huggingface_name(name):
    """Of torchtitan's `name`; None for what Hugging Face does not store."""
    if name == "freqs_cis":
        return None
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if layer and layer[2] in OF_LAYER:
        return f"model.layers.{layer[1]}.{OF_LAYER[layer[2]]}.weight"
    if name.endswith(".weight") and name[:-len(".weight")] in WHOLE:
        return WHOLE[name[:-len(".weight")]] + ".weight"
    raise ImportFailure(f"{name} is no tensor of torchtitan's Llama; other models are not supported")


def model_tensors(checkpoint):
    """Hugging Face name -> name in the checkpoint."""
    names = {}
    for stored in checkpoint.tensors:
        if stored.startswith(("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")):
            continue
        name = huggingface_name(WRAPPERS.sub("", stored).removeprefix("model."))
        if name in names:
            raise ImportFailure(f"{names[name]} and {stored} are the same tensor")
        if name is not None:
            names[name] = stored
    if "model.embed_tokens.weight" not in names:
        raise ImportFailure(f"{checkpoint.folder}: no tok_embeddings.weight; is this a checkpoint of torchtitan's Llama?")
    return dict(sorted(names.items()))


def make_config(checkpoint, names, arguments):
    """config.json: the shape as the tensors have it, the rest as the arguments say."""
    shape = lambda name: list(checkpoint.tensors[names[name]].size)
    layers = len({name.split(".")[2] for name in names if name.startswith("model.layers.")})
    missing = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in OF_LAYER.values()
               if f"model.layers.{i}.{part}.weight" not in names]
    if missing or "model.norm.weight" not in names or layers == 0:
        raise ImportFailure(f"{checkpoint.folder}: tensors are missing: {', '.join(missing[:3]) or 'norm.weight or all layers'}")
    given = json.loads(pathlib.Path(arguments.config).read_text()) if arguments.config else {}
    heads = given.get("num_attention_heads", arguments.num_heads)
    rows = shape("model.layers.0.self_attn.q_proj.weight")[0]
    if not heads or rows % heads or (rows // heads) % 2:
        raise ImportFailure(f"wq has {rows} rows, which {heads} heads of an even size do not divide; say --num-heads or --config")
    vocab_size, dim = shape("model.embed_tokens.weight")
    found = {
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "intermediate_size": shape("model.layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shape("model.layers.0.self_attn.k_proj.weight")[0] * heads // rows,
        "head_dim": rows // heads,
        "tie_word_embeddings": "lm_head.weight" not in names,
    }
    for key, value in given.items():
        if key in found and key != "tie_word_embeddings" and value is not None and value != found[key]:
            raise ImportFailure(f"{arguments.config}: {key} is {value}, the tensors say {found[key]}")
    defaults = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "attention_bias": False, "mlp_bias": False, "rms_norm_eps": arguments.norm_eps,
                "rope_theta": arguments.rope_theta, "max_position_embeddings": arguments.max_seq_len}
    dtype = arguments.dtype or str(checkpoint.tensors[names["model.embed_tokens.weight"]].properties.dtype).removeprefix("torch.")
    return defaults | given | found | {"torch_dtype": dtype}


def to_halves(weight, num_heads):
    """Rows of each head from (0, 1), (2, 3), ... pairs to pairs of halves, as Hugging Face rotates them."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def convert(name, weight, config, dtype):
    if name.endswith("q_proj.weight"):
        weight = to_halves(weight, config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        weight = to_halves(weight, config["num_key_value_heads"])
    return weight.to(dtype or weight.dtype).contiguous()


def split_into_files(checkpoint, names, max_bytes):
    """Lists of names, each list at most `max_bytes` unless one tensor is larger."""
    files, size = [[]], 0
    for name, stored in names.items():
        entry = checkpoint.tensors[stored]
        bytes_here = math.prod(entry.size) * entry.properties.dtype.itemsize
        if files[-1] and size + bytes_here > max_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += bytes_here
    return files


def write_directory(checkpoint, names, config, arguments, output):
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    files = split_into_files(checkpoint, names, arguments.max_file_bytes)
    weight_map, total, shown = {}, 0, time.monotonic()
    for number, part in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {}
        for name in part:
            tensors[name] = convert(name, checkpoint.read(names[name]), config, dtype)
            weight_map[name] = file
            total += tensors[name].nbytes
            if time.monotonic() - shown > 2:
                print(f"{len(weight_map)} of {len(names)} tensors", file=sys.stderr)
                shown = time.monotonic()
        save_file(tensors, output / file, metadata={"format": "pt"})
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        source = pathlib.Path(arguments.tokenizer or "/nonexistent") / name
        if source.is_file():
            shutil.copy(source, output / name)


def import_dcp(arguments):
    output = pathlib.Path(arguments.output)
    if output.exists():
        raise ImportFailure(f"{output} exists already; choose another --output or remove it")
    checkpoint = DistributedCheckpoint(arguments.folder)
    names = model_tensors(checkpoint)
    config = make_config(checkpoint, names, arguments)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_directory(checkpoint, names, config, arguments, temporary)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {output}: {len(names)} tensors, {config['num_hidden_layers']} layers, dim {config['hidden_size']}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of one step, with .metadata and *.distcp in it")
    parser.add_argument("--output", required=True, help="Hugging Face directory to write")
    parser.add_argument("--num-heads", type=int, help="attention heads; unless --config has them")
    parser.add_argument("--config", help="config.json of the same architecture: RoPE, norm and token ids are taken from it")
    parser.add_argument("--rope-theta", type=float, default=500000.0)
    parser.add_argument("--norm-eps", type=float, default=1e-5)
    parser.add_argument("--max-seq-len", type=int, default=8192)
    parser.add_argument("--tokenizer", help="directory whose tokenizer files are copied")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    parser.add_argument("--max-file-bytes", type=int, default=5_000_000_000)
    try:
        import_dcp(parser.parse_args())
    except (ImportFailure, OSError) as error:
        sys.exit(f"import_dcp: {error}")


if __name__ == "__main__":
    main()
