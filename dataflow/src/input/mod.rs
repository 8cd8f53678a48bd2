//! From samples to batches: the roles and the epoch plan, augmentation, and images that cannot be read.

pub mod augment;
pub mod bad_images;
pub mod collected;
pub mod plan;
