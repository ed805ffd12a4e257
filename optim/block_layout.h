#pragma once

#include <cstdint>

namespace narrowgauge::optim {

// Note: blocks of a quantized state
//
// A block is a run of block_size elements of the *whole* parameter, flattened, and has one scale.
// It does not depend on the sharding: a rank holds the blocks that its rows touch, the first and
// the last maybe in part. Ranks that share a block hold equal copies of its scale, which they agree
// on at each step (BlockExchange). So a state has the same bits at every world size, and a
// checkpoint loads at any other without quantizing again. At one rank these are torchao's blocks.

// The blocks of one parameter as one shard sees them. Blocks are counted from the shard's first.
struct BlockLayout {
  int64_t block_size = 0;
  int64_t first_element = 0;  // of the shard, in the whole parameter
  int64_t num_elements = 0;   // of the shard
  int64_t global_elements = 0;

  int64_t end_element() const { return first_element + num_elements; }
  int64_t first_block() const { return first_element / block_size; }
  int64_t num_blocks() const {
    return num_elements == 0 ? 0 : (end_element() + block_size - 1) / block_size - first_block();
  }
  // Elements of a block within the shard: [begin(block), begin(block + 1)).
  int64_t begin(int64_t block) const {
    const int64_t element = (first_block() + block) * block_size;
    return element < first_element   ? 0
           : element > end_element() ? num_elements
                                     : element - first_element;
  }
  // Whether another rank holds a part of the first, of the last block.
  bool shares_first() const { return num_elements > 0 && first_element % block_size != 0; }
  bool shares_last() const {
    return num_elements > 0 && end_element() % block_size != 0 && end_element() < global_elements;
  }
};

}  // namespace narrowgauge::optim
