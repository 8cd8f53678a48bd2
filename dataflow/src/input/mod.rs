//! From samples to batches: the roles and the epoch plan, augmentation, targets that move with their images, and images that
//! cannot be read.

pub mod augment;
pub mod bad_images;
pub mod collected;
pub mod geometry;
pub mod plan;
pub mod targets;
