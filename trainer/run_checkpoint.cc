#include "trainer/run_checkpoint.h"
