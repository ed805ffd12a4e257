#pragma once

namespace narrowgauge::optim {

// Options of torch.optim.Adam and AdamW.
struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  // True: AdamW, decay multiplies the parameter. False: Adam, decay is added to the gradient.
  bool decoupled_weight_decay = true;
};

// Throws c10::Error unless the betas are in [0, 1) and eps >= 0.
void check_options(const AdamOptions& options);

}  // namespace narrowgauge::optim
