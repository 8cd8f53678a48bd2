//! The entry of the GPU in the list of devices.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use mlomae_device::{Precision, Priority, survey};

use super::lane::CudaLane;
use super::vector::Home;
use crate::choice::Named;
use crate::error::ModelError;
use crate::lane::{Device, Lane, LaneSize, Lanes, LanesSpec};
use crate::model::Model;
use crate::parallel::arena::Arena;

/// NVIDIA GPUs.
#[derive(Debug)]
pub struct Cuda;

/// The opened device, as long as some lane uses it: all lanes of a process share its context.
pub(super) fn home() -> Result<Arc<Home>, ModelError> {
    static HOME: Mutex<Weak<Home>> = Mutex::new(Weak::new());
    let mut known = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(home) = known.upgrade() {
        return Ok(home);
    }
    let home = Home::open()?;
    *known = Arc::downgrade(&home);
    Ok(home)
}

impl Named for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn summary(&self) -> &'static str {
        "The first NVIDIA GPU: needs driver, libnvrtc and libcublasLt"
    }
}

impl Device for Cuda {
    fn problem(&self) -> Option<String> {
        survey().problem.clone()
    }

    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError> {
        let home = home()?;
        let lane = |priority| -> Result<Box<dyn Lane>, ModelError> {
            Ok(Box::new(CudaLane::new(&home, &spec.model, Precision::F32, priority)?))
        };
        Ok(Lanes {
            score: lane(Priority::High)?,
            pretrain: lane(Priority::High)?,
            finetune: lane(Priority::Normal)?,
            mask: lane(Priority::Normal)?,
        })
    }

    fn lane(&self, model: &Arc<Model>, _: &Arena, _: usize, _: LaneSize) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(CudaLane::new(&home()?, model, Precision::F32, Priority::Normal)?))
    }
}
