#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/eval_task.h"
#include "trainer/log_likelihood.h"

namespace narrowgauge::trainer {

// A share of items, and the standard error of that share (of a sample, n - 1, as
// lm-evaluation-harness gives it).
struct Accuracy {
  double value = 0;
  double standard_error = 0;
};

Accuracy accuracy_of(int64_t num_right, int64_t num_items);

struct TaskScore {
  int64_t num_items = 0;
  Accuracy acc;                      // of the likeliest continuation; of LAMBADA: greedy decoding
  std::optional<Accuracy> acc_norm;  // likeliest per character; choices only
  std::optional<double> perplexity;  // exp(-mean log probability) of an item; LAMBADA only
};

// likelihoods: those of every continuation of every item, in their order. Of equal scores the first
// counts, as numpy's argmax has it.
TaskScore score_task(const std::vector<TaskItem>& items,
                     const std::vector<Likelihood>& likelihoods);

}  // namespace narrowgauge::trainer
