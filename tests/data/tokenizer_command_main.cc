// `narrowgauge tokenizer` alone, for tests that compare with the reference libraries.

#include <string>
#include <vector>

#include "trainer/tokenizer_command.h"

int main(int argc, char** argv) {
  return narrowgauge::trainer::tokenizer_command(std::vector<std::string>(argv + 1, argv + argc));
}
