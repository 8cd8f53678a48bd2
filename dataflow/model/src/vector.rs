//! Flat vectors in the memory of a device: parameters, gradients, moments and images.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::ModelError;
use crate::parallel::arena::{Buffer, Params};

/// A flat vector in memory of a device other than the host, of a type that the device's lanes know. Immutable once it
/// is in a [`Vector`]; dropping it frees the memory.
pub trait DeviceMemory: Any + Send + Sync + fmt::Debug {
    /// Number of values.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy in host memory. Waits for what the device still computes of the vector.
    ///
    /// # Errors
    /// When the device fails.
    fn download(&self) -> Result<Buffer, ModelError>;

    /// `self`, for the downcast in [`Vector::device`].
    fn as_any(&self) -> &dyn Any;
}

/// A flat vector of `f32`, in host memory or in a device's. Cloning shares the values, which are never changed while
/// shared.
#[derive(Clone, Debug)]
pub struct Vector(Memory);

#[derive(Clone, Debug)]
enum Memory {
    Host(Params),
    Device(Arc<dyn DeviceMemory>),
}

impl Vector {
    /// A vector in a device's memory.
    #[must_use]
    pub fn of_device(memory: Arc<dyn DeviceMemory>) -> Self {
        Vector(Memory::Device(memory))
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Memory::Host(values) => values.len(),
            Memory::Device(memory) => memory.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, if they are in host memory.
    #[must_use]
    pub fn host(&self) -> Option<&Params> {
        match &self.0 {
            Memory::Host(values) => Some(values),
            Memory::Device(_) => None,
        }
    }

    /// The vector in device memory of type `M`; none if it is in other memory.
    #[must_use]
    pub fn device<M: DeviceMemory>(&self) -> Option<&M> {
        match &self.0 {
            Memory::Host(_) => None,
            Memory::Device(memory) => memory.as_any().downcast_ref(),
        }
    }

    /// Whether nobody else shares the values, so that writing them changes no snapshot.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        match &self.0 {
            Memory::Host(values) => Arc::strong_count(values) == 1,
            Memory::Device(memory) => Arc::strong_count(memory) == 1,
        }
    }

    /// The values in host memory: shared if they are there, else downloaded.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_host(&self) -> Result<Params, ModelError> {
        match &self.0 {
            Memory::Host(values) => Ok(values.clone()),
            Memory::Device(memory) => memory.download().map(Arc::new),
        }
    }

    /// The values for writing, if they are in host memory: copy-on-write if they are shared.
    pub fn host_mut(&mut self) -> Option<&mut [f32]> {
        match &mut self.0 {
            Memory::Host(values) => Some(&mut *Arc::make_mut(values)),
            Memory::Device(_) => None,
        }
    }
}

impl Default for Vector {
    fn default() -> Self {
        Buffer::default().into()
    }
}

impl From<Buffer> for Vector {
    fn from(values: Buffer) -> Self {
        Vector(Memory::Host(Arc::new(values)))
    }
}

impl From<Params> for Vector {
    fn from(values: Params) -> Self {
        Vector(Memory::Host(values))
    }
}

impl From<Vec<f32>> for Vector {
    fn from(values: Vec<f32>) -> Self {
        Buffer::from_vec(values).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Elsewhere(Vec<f32>);

    impl DeviceMemory for Elsewhere {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn download(&self) -> Result<Buffer, ModelError> {
            Ok(Buffer::from_vec(self.0.clone()))
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    #[test]
    fn what_is_shared_is_copied_before_it_is_written() {
        let mut ours = Vector::from(vec![1.0, 2.0]);
        let place = ours.host().unwrap().as_ptr();
        ours.host_mut().unwrap()[0] = 3.0;
        assert_eq!(ours.host().unwrap().as_ptr(), place, "nobody shares it");
        let theirs = ours.clone();
        ours.host_mut().unwrap()[1] = 4.0;
        assert_eq!(
            (ours.to_host().unwrap().to_vec(), theirs.to_host().unwrap().to_vec()),
            (vec![3.0, 4.0], vec![3.0, 2.0])
        );
    }

    #[test]
    fn a_vector_elsewhere_is_downloaded_and_known_by_its_type() {
        let vector = Vector::of_device(Arc::new(Elsewhere(vec![5.0, 6.0])));
        assert_eq!((vector.len(), vector.host().is_none()), (2, true));
        assert_eq!(vector.device::<Elsewhere>().unwrap().0, [5.0, 6.0]);
        assert_eq!(vector.to_host().unwrap()[..], [5.0, 6.0]);
        assert!(Vector::from(vec![1.0]).device::<Elsewhere>().is_none());
    }
}
