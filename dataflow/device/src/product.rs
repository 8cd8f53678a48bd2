//! Products of matrices by cuBLASLt.
//!
//! An algorithm is the heuristic's first for the shape, types and alignments, and is kept: it is never chosen by
//! timing. Each stream has its own handle and workspace, as NVIDIA advises where results must have the same bits with
//! several streams.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;

use crate::error::DeviceError;
use crate::memory::{ActView, Block, Pool};
use crate::stream::{Precision, Stream};
use crate::timing;

/// Workspace of each stream.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A factor of a product, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The values.
    pub values: ActView<'a>,
    /// Whether the transpose of what is stored is meant.
    pub transposed: bool,
}

impl<'a> Matrix<'a> {
    /// The matrix as it is stored.
    #[must_use]
    pub fn of(values: impl Into<ActView<'a>>) -> Self {
        Matrix { values: values.into(), transposed: false }
    }

    /// The transpose of what is stored.
    #[must_use]
    pub fn transpose(values: impl Into<ActView<'a>>) -> Self {
        Matrix { values: values.into(), transposed: true }
    }
}

/// out `[m, n]` = a `[m, k]` · b `[k, n]` + bias `[n]`, all row-major; added to `out` with `accumulate`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[m, n]`; f32, or bf16 where the factors are.
    pub out: ActView<'a>,
    /// `[m, k]`; stored as `[k, m]` if transposed.
    pub a: Matrix<'a>,
    /// `[k, n]`; stored as `[n, k]` if transposed. Of the type of `a`.
    pub b: Matrix<'a>,
    /// Rows, columns, and the length of the sums.
    pub shape: [usize; 3],
    /// Added to each row; of the type of `out`.
    pub bias: Option<ActView<'a>>,
    /// Adds to `out` instead of overwriting it.
    pub accumulate: bool,
}

/// What decides which algorithm is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    low_in: bool,
    low_out: bool,
    transposed: [bool; 2],
    bias: bool,
    accumulate: bool,
    /// The largest power of two up to 256 that divides all pointers.
    alignment: u32,
    tf32: bool,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of cuBLASLt's A, B and D, column-major: our b, a and out.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Handle, workspace and plans of a stream.
pub(crate) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Block,
    plans: HashMap<Key, Plan>,
}

fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), lt::CublasError> {
    // SAFETY: the description is alive, and each caller passes the type that the attribute has.
    unsafe {
        let value: *const c_void = std::ptr::from_ref(value).cast();
        lt::set_matmul_desc_attribute(description, attribute, value, size_of::<T>())
    }
}

fn data_type(low: bool) -> sys::cudaDataType {
    if low { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F }
}

impl Products {
    pub(crate) fn new(pool: &Arc<Pool>) -> Result<Self, DeviceError> {
        let workspace = pool.take(WORKSPACE_BYTES as u64)?;
        let failed =
            |error: lt::CublasError| DeviceError::Product { shape: "any shape".into(), cause: error.to_string() };
        Ok(Products { handle: lt::create_handle().map_err(failed)?, workspace, plans: HashMap::new() })
    }

    fn plan(&mut self, key: Key) -> Result<&Plan, DeviceError> {
        if !self.plans.contains_key(&key) {
            let plan = self
                .make(&key)
                .map_err(|error| DeviceError::Product { shape: format!("{key:?}"), cause: error.to_string() })?;
            self.plans.insert(key, plan);
        }
        Ok(&self.plans[&key])
    }

    fn make(&self, key: &Key) -> Result<Plan, lt::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let compute = if key.tf32 {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let description = lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let operation = |transposed: bool| i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(key.transposed[1]))?;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(key.transposed[0]))?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            let bias = data_type(key.low_out) as i32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias)?;
        }
        let [m, n, k] = key.shape.map(|size| size as u64);
        let layout = |low, rows: u64, columns: u64, transposed: bool| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            lt::create_matrix_layout(data_type(low), rows, columns, rows as i64)
        };
        let layouts = [
            layout(key.low_in, n, k, key.transposed[1])?,
            layout(key.low_in, k, m, key.transposed[0])?,
            layout(key.low_out, n, m, false)?,
        ];
        let preference = lt::create_matmul_pref()?;
        // SAFETY: the preference is alive; sizes are those of the attributes.
        unsafe {
            let prefer = |attribute, value: *const c_void, size| {
                lt::set_matmul_pref_attribute(preference, attribute, value, size)
            };
            let bytes: u64 = WORKSPACE_BYTES as u64;
            prefer(
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&bytes).cast(),
                size_of::<u64>(),
            )?;
            for attribute in [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                prefer(attribute, std::ptr::from_ref(&key.alignment).cast(), size_of::<u32>())?;
            }
        }
        // SAFETY: all descriptions are alive.
        let found = unsafe {
            let [a, b, d] = layouts;
            let found = lt::get_matmul_algo_heuristic(self.handle, description, a, b, d, d, preference);
            lt::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Plan { description, layouts, algorithm: found.algo })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: nobody else has them, and the stream has been waited for.
        unsafe {
            for plan in self.plans.values() {
                for layout in plan.layouts {
                    let _ = lt::destroy_matrix_layout(layout);
                }
                let _ = lt::destroy_matmul_desc(plan.description);
            }
            let _ = lt::destroy_handle(self.handle);
        }
    }
}

fn is_low(view: ActView<'_>) -> bool {
    matches!(view, ActView::Bf16(_))
}

fn pointer(view: ActView<'_>) -> u64 {
    match view {
        ActView::F32(view) => view.pointer,
        ActView::Bf16(view) => view.pointer,
    }
}

impl Stream {
    /// Enqueues a product. Products of f32 factors are rounded to tf32 where the stream's precision is tf32 or bf16.
    pub fn product(&self, product: &Product<'_>) {
        let Product { out, a, b, shape, bias, accumulate } = *product;
        let [m, n, k] = shape;
        assert_eq!(out.len(), m * n, "product: out");
        assert_eq!(a.values.len(), m * k, "product: a");
        assert_eq!(b.values.len(), k * n, "product: b");
        assert!(bias.is_none_or(|bias| bias.len() == n && is_low(bias) == is_low(out)), "product: bias");
        assert!(is_low(a.values) == is_low(b.values) && (is_low(a.values) || !is_low(out)), "product: types");
        if out.is_empty() {
            return;
        }
        self.count_products(1, shape);
        timing::note(product);
        self.enqueue(|stream| {
            let pointers = [pointer(b.values), pointer(a.values), pointer(out)];
            let alignment = pointers.iter().fold(256, |least, pointer| least.min(1 << pointer.trailing_zeros().min(8)));
            let key = Key {
                shape,
                low_in: is_low(a.values),
                low_out: is_low(out),
                transposed: [a.transposed, b.transposed],
                bias: bias.is_some(),
                accumulate,
                alignment,
                tf32: self.precision() != Precision::F32 && !is_low(a.values),
            };
            let mut products = self.products();
            let (handle, workspace) = (products.handle, products.workspace.pointer);
            let plan = products.plan(key)?;
            let failed =
                |error: lt::CublasError| DeviceError::Product { shape: format!("{key:?}"), cause: error.to_string() };
            if let Some(bias) = bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                set(plan.description, attribute, &pointer(bias)).map_err(failed)?;
            }
            let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0f32 });
            let [layout_a, layout_b, layout_d] = plan.layouts;
            // SAFETY: the pointers are live blocks of the checked lengths; the workspace belongs to this stream alone.
            unsafe {
                lt::matmul(
                    handle,
                    plan.description,
                    std::ptr::from_ref(&alpha).cast(),
                    std::ptr::from_ref(&beta).cast(),
                    pointers[0] as *const c_void,
                    layout_a,
                    pointers[1] as *const c_void,
                    layout_b,
                    pointers[2] as *const c_void,
                    layout_d,
                    pointers[2] as *mut c_void,
                    layout_d,
                    std::ptr::from_ref(&plan.algorithm),
                    workspace as *mut c_void,
                    WORKSPACE_BYTES,
                    stream.cast(),
                )
            }
            .map_err(|error| DeviceError::Driver {
                call: "a product of cuBLASLt",
                cause: format!("{error} for {key:?}"),
            })
        });
    }
}
