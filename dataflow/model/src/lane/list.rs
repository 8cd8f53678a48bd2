//! The list of devices.

use super::seam::Device;
use super::{cpu, cuda};
use crate::choice::{Choice, Registry};

/// Every device, in order of preference: of those that can be used, `engine = "auto"` takes the first. The processor is
/// the last, as it always can.
pub static DEVICES: &[&dyn Device] = &[&cuda::Cuda, &cpu::Cpus];

impl Registry for dyn Device {
    const WHAT: &'static str = "device";
    fn entries() -> &'static [&'static Self] {
        DEVICES
    }
}

/// A device that was chosen by name.
pub type DeviceChoice = Choice<dyn Device>;
