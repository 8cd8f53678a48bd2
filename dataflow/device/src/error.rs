//! Errors of the device.

use cudarc::driver::result::DriverError;

/// What can go wrong on a GPU.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The machine lacks a library or a device.
    #[error("{0}")]
    Missing(String),
    /// The device has no memory left.
    #[error(
        "out of memory on the GPU: {} MiB more are needed, this process holds {} MiB; smaller batches or \
         engine = \"cpu\" need less",
        wanted_bytes.div_ceil(1 << 20),
        taken_bytes.div_ceil(1 << 20)
    )]
    Memory {
        /// Size of the block that could not be had.
        wanted_bytes: u64,
        /// Bytes that this process holds on the device.
        taken_bytes: u64,
    },
    /// A call of the driver failed.
    #[error("the GPU failed in {call}: {cause}")]
    Driver {
        /// What was being done.
        call: &'static str,
        /// The driver's name and words for it.
        cause: String,
    },
    /// The kernels do not compile for the device.
    #[error("the kernels do not compile for {arch}: {cause}")]
    Compile {
        /// The architecture, like `sm_90a`.
        arch: String,
        /// The compiler's words.
        cause: String,
    },
    /// cuBLASLt has no algorithm for a product, or failed.
    #[error("cuBLASLt refuses a product of {shape}: {cause}")]
    Product {
        /// Shapes and types.
        shape: String,
        /// Its status.
        cause: String,
    },
}

impl DeviceError {
    /// The error of a call of the driver.
    pub(crate) fn driver(call: &'static str, error: DriverError) -> Self {
        let text = |name: Result<&std::ffi::CStr, DriverError>| {
            name.map_or_else(|_| "unknown error".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        DeviceError::Driver { call, cause: format!("{}: {}", text(error.error_name()), text(error.error_string())) }
    }
}
