// What the emulated compiler gives for a binary image, and the emulated driver takes. A real driver refuses it.
#pragma once

/// Followed by a hash of the source, in text.
#define IMAGE_PREFIX "emulated image of "

/// Hash of the source that the kernels of these libraries were built from; written by dataflow/device/src/testing.
extern "C" const char KERNELS_HASH[];
