//! Vectors in the memory of a GPU.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use mlomae_device::{Gpu, Mem, Precision, Priority, Stream};

use crate::error::ModelError;
use crate::parallel::arena::{Arena, Buffer};
use crate::parallel::compute::Compute;
use crate::vector::{DeviceMemory, Vector};

/// The device of a run, with a stream for downloads from any thread.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) gpu: Gpu,
    /// Threads for heads that are computed on the host, which all lanes share: one lane uses them at a time, as only level 2 and 3 have heads.
    pub(super) heads: Compute,
    copier: Mutex<Stream>,
}

impl Home {
    pub(super) fn open() -> Result<Arc<Self>, ModelError> {
        let gpu = Gpu::open()?;
        let copier = Mutex::new(Stream::new(&gpu, Precision::F32, Priority::Normal)?);
        let num_threads = std::thread::available_parallelism().map_or(1, |num| usize::from(num).min(8));
        let heads = Compute::new(num_threads, 1, Arena::new())?;
        Ok(Arc::new(Home { gpu, heads, copier }))
    }
}

/// A vector on the GPU, complete: the call of a lane that made it has waited for it.
#[derive(Clone, Debug)]
pub(super) struct GpuVector {
    pub(super) values: Mem<f32>,
    home: Arc<Home>,
}

impl GpuVector {
    /// A complete vector, as others see it.
    pub(super) fn shared(home: &Arc<Home>, values: Mem<f32>) -> Vector {
        Vector::of_device(Arc::new(GpuVector { values, home: home.clone() }))
    }
}

impl DeviceMemory for GpuVector {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn download(&self) -> Result<Buffer, ModelError> {
        let copier = self.home.copier.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Buffer::from_vec(copier.download(self.values.view())?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The memory of a vector that was uploaded or came from a lane.
pub(super) fn mem(vector: &Vector) -> Result<&Mem<f32>, ModelError> {
    let elsewhere = || ModelError::Lane { lane: "cuda", problem: "a vector is not in the GPU's memory".to_owned() };
    vector.device::<GpuVector>().map(|vector| &vector.values).ok_or_else(elsewhere)
}
