#include "optim/adam_options.h"

#include <c10/util/Exception.h>

namespace narrowgauge::optim {

void check_options(const AdamOptions& options) {
  TORCH_CHECK(options.beta1 >= 0 && options.beta1 < 1, "expected 0 <= beta1 < 1, got ",
              options.beta1);
  TORCH_CHECK(options.beta2 >= 0 && options.beta2 < 1, "expected 0 <= beta2 < 1, got ",
              options.beta2);
  TORCH_CHECK(options.eps >= 0, "expected eps >= 0, got ", options.eps);
}

}  // namespace narrowgauge::optim
