// Host memory that the device reaches by itself: copies from and to it happen when their turn comes.
#pragma once
#include <cstddef>

namespace fake {

void* pin(size_t bytes);
bool unpin(void* begin);
bool is_pinned(const void* pointer);

}  // namespace fake
