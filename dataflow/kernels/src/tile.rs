//! Register tiles, the innermost loops of attention and of [`super::gemm`], and the copies that feed them.

use super::simd::Simd;

/// op(A) of a tile: element (i, p) is at `ptr + i * row + p * step`, p running along k.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub ptr: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Σ over p < k of A[i, p] · B[p, :] for MR rows and NV vectors, each an FMA chain in the order of p. Rows
/// of A after `last` repeat it.
///
/// # Safety
/// A must be readable for rows 0..=last and k columns, B for k rows of NV vectors, `ldb` apart.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    k: usize,
    a: Strided,
    last: usize,
    b: *const f32,
    ldb: usize,
) -> [[S::V; NV]; MR] {
    let mut acc = [[s.splat(0.0); NV]; MR];
    let mut rows = [a.ptr; MR];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = a.ptr.wrapping_add(i.min(last) * a.row);
    }
    let mut b = b;
    let mut offset = 0;
    for _ in 0..k {
        // SAFETY: fewer than k steps were taken, and the caller makes k columns of A and k rows of B
        // readable.
        unsafe {
            let mut v = [s.splat(0.0); NV];
            for (j, v) in v.iter_mut().enumerate() {
                *v = s.load(b.add(j * S::LANES));
            }
            for i in 0..MR {
                let x = s.splat(*rows[i].add(offset));
                for j in 0..NV {
                    acc[i][j] = s.fma(x, v[j], acc[i][j]);
                }
            }
        }
        b = b.wrapping_add(ldb);
        offset += a.step;
    }
    acc
}

/// C = alpha · A·B for a small product: A rows × k, B k × cols with its rows padded to whole vectors, C
/// rows × cols.
///
/// # Safety
/// A must be readable for rows × k; B for k rows, `ldb` apart, of cols rounded up to whole vectors; C
/// writable for rows × cols, `ldc` apart.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn small_product<S: Simd>(
    s: S,
    rows: usize,
    cols: usize,
    k: usize,
    alpha: f32,
    a: Strided,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: the contract is handed on.
    unsafe {
        if rows == 1 {
            row_block::<S, 1>(s, 1, cols, k, alpha, a, b, ldb, c, ldc);
            return;
        }
        let mut i = 0;
        while i < rows {
            let a = Strided { ptr: a.ptr.add(i * a.row), ..a };
            row_block::<S, 6>(s, (rows - i).min(6), cols, k, alpha, a, b, ldb, c.add(i * ldc), ldc);
            i += 6;
        }
    }
}

/// # Safety
/// As [`small_product`], for `rows` <= MR.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn row_block<S: Simd, const MR: usize>(
    s: S,
    rows: usize,
    cols: usize,
    k: usize,
    alpha: f32,
    a: Strided,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
) {
    let mut left = cols.div_ceil(S::LANES);
    let mut at = 0;
    // SAFETY: the columns from `at` on that each call takes are inside `cols` rounded up to vectors.
    unsafe {
        while left > 0 {
            let (b, c, width) = (b.add(at), c.add(at), cols - at);
            let taken = match left {
                4.. if S::WIDE => store_tile::<S, MR, 4>(s, rows, width, k, alpha, a, b, ldb, c, ldc),
                3 if S::WIDE => store_tile::<S, MR, 3>(s, rows, width, k, alpha, a, b, ldb, c, ldc),
                1 => store_tile::<S, MR, 1>(s, rows, width, k, alpha, a, b, ldb, c, ldc),
                _ => store_tile::<S, MR, 2>(s, rows, width, k, alpha, a, b, ldb, c, ldc),
            };
            left -= taken;
            at += taken * S::LANES;
        }
    }
}

/// Computes and stores one tile; returns NV.
///
/// # Safety
/// As [`small_product`], for `rows` <= MR and NV vectors of B.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn store_tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    rows: usize,
    cols: usize,
    k: usize,
    alpha: f32,
    a: Strided,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
) -> usize {
    // SAFETY: rows and columns that are stored exist by contract.
    unsafe {
        let acc = tile::<S, MR, NV>(s, k, a, rows - 1, b, ldb);
        let scale = s.splat(alpha);
        for (i, acc) in acc.iter().enumerate() {
            if i < rows {
                for (j, v) in acc.iter().enumerate() {
                    let p = c.add(i * ldc + j * S::LANES);
                    let w = cols - j * S::LANES;
                    if w >= S::LANES {
                        s.store(p, s.mul(*v, scale));
                    } else {
                        s.store_n(p, w, s.mul(*v, scale));
                    }
                }
            }
        }
    }
    NV
}

/// Copies rows × cols, `lds` apart, to rows of `ldd` values (whole vectors, at least cols), with zeros
/// after the last column.
///
/// # Safety
/// `src` must be readable for rows × cols and `dst` writable for rows × ldd, and they may not overlap.
#[inline(always)]
pub(super) unsafe fn copy_rows<S: Simd>(
    s: S,
    src: *const f32,
    lds: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    ldd: usize,
) {
    for r in 0..rows {
        let mut i = 0;
        while i < ldd {
            let w = cols.saturating_sub(i).min(S::LANES);
            // SAFETY: reads i + w <= cols values of a row; writes i + LANES <= ldd, as ldd is a multiple of
            // LANES.
            unsafe { s.store(dst.add(r * ldd + i), s.load_n(src.add(r * lds + i), w)) };
            i += S::LANES;
        }
    }
}

/// dst[c, r] = src[r, c] for rows × cols. Rows of dst have `ldd` values (whole vectors, at least rows),
/// with zeros after the last.
///
/// # Safety
/// `src` must be readable for rows × cols, `lds` apart, and `dst` writable for cols × ldd, and they may not
/// overlap.
#[inline(always)]
pub(super) unsafe fn transpose_rows<S: Simd>(
    s: S,
    src: *const f32,
    lds: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    ldd: usize,
) {
    let (whole_rows, whole_cols) = (rows - rows % S::LANES, cols - cols % S::LANES);
    // SAFETY: squares lie in whole rows and columns; the rest is copied by element inside rows × cols and
    // cols × ldd.
    unsafe {
        for r in (0..whole_rows).step_by(S::LANES) {
            for c in (0..whole_cols).step_by(S::LANES) {
                s.transpose(src.add(r * lds + c), lds, S::LANES - 1, dst.add(c * ldd + r), ldd);
            }
            for c in whole_cols..cols {
                for i in r..r + S::LANES {
                    *dst.add(c * ldd + i) = *src.add(i * lds + c);
                }
            }
        }
        if whole_rows < ldd {
            for c in 0..cols {
                for i in whole_rows..rows {
                    *dst.add(c * ldd + i) = *src.add(i * lds + c);
                }
                for i in rows..ldd {
                    *dst.add(c * ldd + i) = 0.0;
                }
            }
        }
    }
}
