//! A memory pool for activations, gradients and parameter vectors.
//!
//! Training needs buffers of the same sizes in every step. An [`Arena`] keeps dropped buffers and hands them out again:
//! so after the first steps there are no allocations, page faults or needless zero fills.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mlomae_kernels::{CACHE_LINE, ask_for_huge_pages};

/// A pool of `f32` buffers, shared by all clones and usable from any thread. Its memory is freed with the last clone
/// and the last buffer.
#[derive(Clone, Default)]
pub struct Arena {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Free storage by size class.
    free: Mutex<BTreeMap<usize, Vec<Vec<f32>>>>,
    allocated_bytes: AtomicU64,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("allocated_bytes", &self.allocated_bytes()).finish_non_exhaustive()
    }
}

/// The index of the first value in `storage` that is aligned to a cache line. Buffers start there, so that SIMD loads
/// from them do not cross cache lines.
fn first_of_line(storage: &[f32]) -> usize {
    storage.as_ptr().align_offset(4 * CACHE_LINE).min(CACHE_LINE)
}

/// The size class of a length: it is rounded up to one of eight sizes per power of two, at most 12.5 % too large (from
/// 256 values on).
fn size_class(len: usize) -> usize {
    let len = len.max(64);
    let step = (len.next_power_of_two() / 16).max(16);
    len.div_ceil(step) * step
}

impl Arena {
    /// An empty arena.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `len` values that are unspecified: stale values of an earlier use.
    pub fn take(&self, len: usize) -> Buffer {
        let class = size_class(len);
        let reused = {
            let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
            // Up to a quarter too large is better than a new allocation: the passes of the levels need different sizes.
            let found = free.range(class..=class + class / 4).next().map(|(&key, _)| key);
            found.and_then(|key| {
                let pieces = free.get_mut(&key)?;
                let piece = pieces.pop();
                if pieces.is_empty() {
                    free.remove(&key);
                }
                piece
            })
        };
        let storage = reused.unwrap_or_else(|| {
            self.shared.allocated_bytes.fetch_add(4 * class as u64, Ordering::Relaxed);
            let mut storage = vec![0.0; class + CACHE_LINE];
            ask_for_huge_pages(&mut storage);
            storage
        });
        self.adopt(storage, len)
    }

    /// A buffer of `len` zeros.
    #[must_use]
    pub fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// A buffer with a copy of `values`.
    #[must_use]
    pub fn copy_of(&self, values: &[f32]) -> Buffer {
        let mut buffer = self.take(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// Turns storage from [`Buffer::into_storage`] of a buffer of `len` values into that buffer again.
    pub(crate) fn adopt(&self, storage: Vec<f32>, len: usize) -> Buffer {
        let start = first_of_line(&storage);
        debug_assert!(storage.len() >= start + len);
        Buffer { storage, start, len, arena: Some(self.clone()) }
    }

    /// Bytes that were ever requested from the system, constant once training has warmed up.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.shared.allocated_bytes.load(Ordering::Relaxed)
    }
}

/// A slice of `f32` whose memory returns to its [`Arena`] when dropped. A clone is a deep copy.
#[derive(Debug, Default)]
pub struct Buffer {
    storage: Vec<f32>,
    start: usize,
    len: usize,
    arena: Option<Arena>,
}

impl Buffer {
    /// A buffer that belongs to no arena and is freed when dropped.
    #[must_use]
    pub fn from_vec(storage: Vec<f32>) -> Self {
        let len = storage.len();
        Buffer { storage, start: 0, len, arena: None }
    }

    /// The storage, which is longer than the buffer and leaves the arena. [`Arena::adopt`] makes it a buffer again.
    pub(crate) fn into_storage(mut self) -> Vec<f32> {
        match self.arena.take() {
            Some(_) => std::mem::take(&mut self.storage),
            None => Arena::new().copy_of(&self).into_storage(),
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        match &self.arena {
            Some(arena) => arena.copy_of(self),
            None => Buffer::from_vec(self.to_vec()),
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Buffer::from_vec(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.take() {
            let storage = std::mem::take(&mut self.storage);
            // Storage that did not come from an arena may have any length; only whole size classes can be found again.
            let class = storage.len().saturating_sub(CACHE_LINE);
            if class > 0 && class == size_class(class) {
                let mut free = arena.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
                free.entry(class).or_default().push(storage);
            }
        }
    }
}

/// A snapshot of a parameter set's values: cheap to share, and copy-on-write.
pub type Params = Arc<Buffer>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_reused_and_counted() {
        let arena = Arena::new();
        drop(arena.zeros(1000));
        let after_first = arena.allocated_bytes();
        assert!(after_first >= 4000);
        for len in [1000, 990, 1001] {
            let b = arena.take(len);
            assert_eq!(b.len(), len);
        }
        assert_eq!(arena.allocated_bytes(), after_first);
        let (_a, _b) = (arena.take(1000), arena.take(1000));
        assert!(arena.allocated_bytes() > after_first);
    }

    #[test]
    fn buffers_begin_with_a_cache_line_wherever_their_storage_was() {
        let arena = Arena::new();
        for len in [1, 100, 5000, 1 << 20] {
            let mut buffer = arena.take(len);
            buffer.fill(len as f32);
            let place = buffer.as_ptr();
            assert_eq!(place as usize % 64, 0);
            let again = arena.adopt(buffer.into_storage(), len);
            assert_eq!((again.as_ptr(), again.len()), (place, len));
            assert!(again.iter().all(|v| *v == len as f32));
        }
        let bytes = arena.allocated_bytes();
        let _all = [1, 100, 5000, 1 << 20].map(|len| arena.take(len));
        assert_eq!(arena.allocated_bytes(), bytes, "storage came back");
    }

    #[test]
    fn size_classes_are_fixed_points_and_near() {
        for len in (1..5000).chain([1 << 20, (1 << 20) + 1, 12_345_678]) {
            let class = size_class(len);
            assert!(class >= len);
            assert_eq!(size_class(class), class);
            assert!(len < 256 || class <= len + len / 8 + 16, "{len} {class}");
        }
    }
}
