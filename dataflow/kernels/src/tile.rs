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
/// rows × cols. Rows of B are `ldb` apart, those of C `ldc`.
#[derive(Clone, Copy)]
pub(super) struct SmallProduct {
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
    pub alpha: f32,
    pub a: Strided,
    pub b: *const f32,
    pub ldb: usize,
    pub c: *mut f32,
    pub ldc: usize,
}

impl SmallProduct {
    /// Computes it.
    ///
    /// # Safety
    /// A must be readable for rows × k; B for k rows of cols rounded up to whole vectors; C writable for
    /// rows × cols.
    #[inline(always)]
    pub(super) unsafe fn compute<S: Simd>(self, s: S) {
        // SAFETY: rows i.. of A and C are inside the matrices that the caller makes accessible.
        unsafe {
            if self.rows == 1 {
                self.row_block::<S, 1>(s);
                return;
            }
            let mut i = 0;
            while i < self.rows {
                let a = Strided { ptr: self.a.ptr.add(i * self.a.row), ..self.a };
                let (rows, c) = ((self.rows - i).min(6), self.c.add(i * self.ldc));
                SmallProduct { rows, a, c, ..self }.row_block::<S, 6>(s);
                i += 6;
            }
        }
    }

    /// # Safety
    /// As [`SmallProduct::compute`], for rows <= MR.
    #[inline(always)]
    unsafe fn row_block<S: Simd, const MR: usize>(self, s: S) {
        let mut left = self.cols.div_ceil(S::LANES);
        let mut at = 0;
        // SAFETY: the columns from `at` on that each call takes are inside cols rounded up to vectors.
        unsafe {
            while left > 0 {
                let (b, c, cols) = (self.b.add(at), self.c.add(at), self.cols - at);
                let rest = SmallProduct { b, c, cols, ..self };
                let taken = match left {
                    4.. if S::WIDE => rest.store_tile::<S, MR, 4>(s),
                    3 if S::WIDE => rest.store_tile::<S, MR, 3>(s),
                    1 => rest.store_tile::<S, MR, 1>(s),
                    _ => rest.store_tile::<S, MR, 2>(s),
                };
                left -= taken;
                at += taken * S::LANES;
            }
        }
    }

    /// Computes and stores the first NV vectors of columns; returns NV.
    ///
    /// # Safety
    /// As [`SmallProduct::compute`], for rows <= MR and NV vectors of B.
    #[inline(always)]
    unsafe fn store_tile<S: Simd, const MR: usize, const NV: usize>(self, s: S) -> usize {
        // SAFETY: row_block() passes NV vectors of B that exist; only rows and columns of C are stored.
        unsafe {
            let acc = tile::<S, MR, NV>(s, self.k, self.a, self.rows - 1, self.b, self.ldb);
            let scale = s.splat(self.alpha);
            for (i, acc) in acc.iter().enumerate() {
                if i < self.rows {
                    for (j, v) in acc.iter().enumerate() {
                        let p = self.c.add(i * self.ldc + j * S::LANES);
                        let w = self.cols - j * S::LANES;
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
