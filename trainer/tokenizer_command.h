#pragma once

#include <span>
#include <string>

namespace narrowgauge::trainer {

// narrowgauge tokenizer train | encode | decode: makes a byte-level BPE from text, or turns lines
// of standard input into token ids and back. `arguments` are those after "tokenizer". Errors go to
// standard error; returns the exit code: 0 done, 1 failure, 2 bad arguments.
int tokenizer_command(std::span<const std::string> arguments);

}  // namespace narrowgauge::trainer
