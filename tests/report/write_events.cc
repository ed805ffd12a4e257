// Writes event files as two starts of a run do: write_events FOLDER
#include <limits>

#include "report/event_file.h"

int main(int argc, char** argv) {
  using narrowgauge::report::EventFile;
  if (argc != 2) {
    return 2;
  }
  {
    EventFile first(argv[1], 0);
    for (int64_t step = 1; step <= 20; ++step) {
      first.add_scalars(step, {{"loss", 1.0 / static_cast<double>(step)}, {"lr", 1e-3}});
    }
  }
  EventFile second(argv[1], 10);  // goes on behind a checkpoint of step 10
  for (int64_t step = 11; step <= 15; ++step) {
    second.add_scalars(step, {{"loss", -static_cast<double>(step)}});
  }
  second.add_scalars(1'000'000'000'000, {{"loss", std::numeric_limits<double>::quiet_NaN()},
                                         {"throughput(tps)", 1e300}});
  second.add_text(15, "sample", "Grüße\nzweite Zeile");
}
