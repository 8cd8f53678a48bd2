//! The description of a product and the code of its epilogue, which [`super::gemm`] and `amx` share.

use super::math;
use super::simd::Simd;

/// op(X) of a product: element (i, j) is at `ptr + i * row + j * col`; one of the two strides is 1.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub ptr: *const f32,
    pub row: usize,
    pub col: usize,
}

impl Operand {
    /// Whether columns are contiguous instead of rows.
    pub(super) fn is_column_major(&self) -> bool {
        self.row == 1 && self.col != 1
    }
}

/// The epilogue: what happens to an element of C after its last addition. Pointers are those of
/// [`crate::Epilogue`].
pub(super) enum Finish {
    /// Nothing.
    Plain,
    /// + bias, then `act`.
    Bias { bias: *const f32, act: Act },
    /// + bias + residual, laid out as C.
    Residual { bias: *const f32, residual: *const f32 },
    /// · gelu'(pre); pre, laid out as C, becomes gelu(pre).
    GeluGrad { pre: *mut f32 },
}

impl Finish {
    /// Whether it needs too many registers to run on a whole register tile at once.
    pub(super) fn is_long(&self) -> bool {
        matches!(self, Finish::Bias { act: Act::Gelu | Act::GeluInto(_), .. } | Finish::GeluGrad { .. })
    }
}

/// The activation after a bias.
#[derive(Clone, Copy)]
pub(super) enum Act {
    /// Nothing.
    None,
    /// C becomes gelu(C).
    Gelu,
    /// C stays, and this matrix (laid out as C) becomes gelu(C).
    GeluInto(*mut f32),
}

/// C [m, n] = or += op(A) [m, k] · op(B) [k, n], then `finish`.
pub(super) struct Product {
    pub c: *mut f32,
    pub ldc: usize,
    pub a: Operand,
    pub b: Operand,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub accumulate: bool,
    pub finish: Finish,
}

/// The size of equal parts of `len`: a multiple of `unit`, and at most `max` unless `unit` is larger.
pub(super) fn split(len: usize, max: usize, unit: usize) -> usize {
    let parts = len.div_ceil(max.max(unit)).max(1);
    len.div_ceil(parts).next_multiple_of(unit).max(unit)
}

/// The part of C under a tile: its first element is at index `at` of C, in column `col`; rows × cols of it
/// lie inside C.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub at: usize,
    pub col: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Stores a whole register tile to its place in C, with the epilogue of `p`, which must not be long (see
/// [`Finish::is_long`]). `add`: adds what is there. `last`: this is the last block of k, so the epilogue is
/// due.
///
/// # Safety
/// MR rows of NV vectors must lie in C at the place.
#[inline(always)]
pub(super) unsafe fn store_whole<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    acc: [[S::V; NV]; MR],
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
) {
    // SAFETY: the tile lies in C by the caller, matmul_with() checked that the bias has a value for each
    // column of C, and that a residual has C's layout.
    unsafe {
        let c = p.c.add(place.at);
        let (bias, residual) = match p.finish {
            Finish::Bias { bias, .. } if last => (Some(bias.add(place.col)), None),
            Finish::Residual { bias, residual } if last => (Some(bias.add(place.col)), Some(residual.add(place.at))),
            _ => (None, None),
        };
        match (add, bias, residual) {
            (false, None, _) => store::<S, MR, NV, false>(s, acc, None, None, c, p.ldc),
            (true, None, _) => store::<S, MR, NV, true>(s, acc, None, None, c, p.ldc),
            (false, bias, None) => store::<S, MR, NV, false>(s, acc, bias, None, c, p.ldc),
            (true, bias, None) => store::<S, MR, NV, true>(s, acc, bias, None, c, p.ldc),
            (false, bias, residual) => store::<S, MR, NV, false>(s, acc, bias, residual, c, p.ldc),
            (true, bias, residual) => store::<S, MR, NV, true>(s, acc, bias, residual, c, p.ldc),
        }
    }
}

/// Stores a whole register tile, after adding what is there (`ADD`), a bias and a residual.
///
/// # Safety
/// MR rows of NV vectors at `c` and at the residual, `ldc` apart, and NV vectors of the bias must be
/// accessible.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const MR: usize, const NV: usize, const ADD: bool>(
    s: S,
    acc: [[S::V; NV]; MR],
    bias: Option<*const f32>,
    residual: Option<*const f32>,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: i < MR and j < NV, whose vectors the caller makes accessible.
    unsafe {
        let mut biases = [s.splat(0.0); NV];
        if let Some(bias) = bias {
            for (j, v) in biases.iter_mut().enumerate() {
                *v = s.load(bias.add(j * S::LANES));
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (j, mut v) in acc.into_iter().enumerate() {
                let at = i * ldc + j * S::LANES;
                if ADD {
                    v = s.add(v, s.load(c.add(at)));
                }
                if bias.is_some() {
                    v = s.add(v, biases[j]);
                }
                if let Some(residual) = residual {
                    v = s.add(v, s.load(residual.add(at)));
                }
                s.store(c.add(at), v);
            }
        }
    }
}

/// Stores any part of a tile from memory to its place in C, with any epilogue; `add` and `last` as in
/// [`store_whole`].
///
/// # Safety
/// `tile` must hold place.rows rows of `nr` values, at least place.cols, and the place must lie in C.
#[inline(always)]
pub(super) unsafe fn store_any<S: Simd>(
    s: S,
    tile: *const f32,
    nr: usize,
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
) {
    for j in (0..place.cols).step_by(S::LANES) {
        let w = place.cols - j;
        // SAFETY: columns j..j + min(w, LANES) of the place, which the caller has in C. (Two calls, so that
        // the width of a whole vector is a constant.)
        unsafe {
            if w >= S::LANES {
                store_column(s, tile, nr, add, last, p, place, j, S::LANES);
            } else {
                store_column(s, tile, nr, add, last, p, place, j, w);
            }
        }
    }
}

/// Columns j..j + w of [`store_any`].
///
/// # Safety
/// As [`store_any`]; w must be at most LANES and the columns inside the place.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn store_column<S: Simd>(
    s: S,
    tile: *const f32,
    nr: usize,
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
    j: usize,
    w: usize,
) {
    let (bias, residual, pre, act) = match p.finish {
        Finish::Bias { bias, act } if last => (Some(bias), None, None, act),
        Finish::Residual { bias, residual } if last => (Some(bias), Some(residual), None, Act::None),
        Finish::GeluGrad { pre } if last => (None, None, Some(pre), Act::None),
        _ => (None, None, None, Act::None),
    };
    // SAFETY: i and j are inside the place. matmul_with() checked that the bias has a value for each column
    // of C, and that residual, pre and out have C's layout.
    unsafe {
        let biases = bias.map_or(s.splat(0.0), |bias| s.load_n(bias.add(place.col + j), w));
        for i in 0..place.rows {
            let here = place.at + i * p.ldc + j;
            let c = p.c.add(here);
            let mut v = s.load_n(tile.add(i * nr + j), w);
            if add {
                v = s.add(v, s.load_n(c, w));
            }
            if bias.is_some() {
                v = s.add(v, biases);
            }
            if let Some(residual) = residual {
                v = s.add(v, s.load_n(residual.add(here), w));
            }
            if let Some(pre) = pre {
                let (gelu, slope) = math::gelu_with_slope(s, s.load_n(pre.add(here), w));
                s.store_n(pre.add(here), w, gelu);
                v = s.mul(v, slope);
            }
            match act {
                Act::None => s.store_n(c, w, v),
                Act::Gelu => s.store_n(c, w, math::gelu(s, v)),
                Act::GeluInto(out) => {
                    s.store_n(c, w, v);
                    s.store_n(out.add(here), w, math::gelu(s, v));
                }
            }
        }
    }
}

/// Prefetches the tile of C and of the residual or pre-activation, so that they are in the cache once its
/// sums are.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(s: S, p: &Product, place: Place, mr: usize, nr: usize) {
    for i in 0..mr {
        for j in (0..nr).step_by(S::LANES) {
            s.prefetch(p.c.wrapping_add(place.at + i * p.ldc + j));
            match p.finish {
                Finish::Residual { residual, .. } => s.prefetch(residual.wrapping_add(place.at + i * p.ldc + j)),
                Finish::GeluGrad { pre } => s.prefetch(pre.wrapping_add(place.at + i * p.ldc + j)),
                _ => {}
            }
        }
    }
}
