//! Reductions: sums of a vector in `f64`, sums over the rows of a matrix, and the search for non-finite
//! values.

use super::dispatch::dispatch;
use super::lengths::{num_rows, same_len};
use super::scratch::with_scratch;
use super::simd::{Simd, sweep};

/// Σ x², accumulated in `f64` in a fixed order.
#[must_use]
pub fn sum_sq(x: &[f32]) -> f64 {
    dot(x, x)
}

/// Σ a·b, accumulated in `f64` in a fixed order.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    same_len(a.len(), b.len(), "dot");
    dispatch!(dot_on(a: &[f32], b: &[f32]) -> f64)
}
#[inline(always)]
fn dot_on<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f64 {
    assert!(a.len() == b.len());
    let (mut even, mut odd) = (s.zero64(), s.zero64());
    let pairs = a.len() - a.len() % (2 * S::LANES);
    let mut i = 0;
    while i < pairs {
        // SAFETY: i + 2 LANES <= pairs <= both lengths.
        unsafe {
            even = s.fma64(s.load(a.as_ptr().add(i)), s.load(b.as_ptr().add(i)), even);
            odd = s.fma64(s.load(a.as_ptr().add(i + S::LANES)), s.load(b.as_ptr().add(i + S::LANES)), odd);
        }
        i += 2 * S::LANES;
    }
    sweep!(S, a.len() - pairs, |j, w| {
        // SAFETY: pairs + j + w <= both lengths.
        unsafe { even = s.fma64(s.load_n(a.as_ptr().add(pairs + j), w), s.load_n(b.as_ptr().add(pairs + j), w), even) };
    });
    s.sum64(even) + s.sum64(odd)
}

/// Σ x, accumulated in `f64` in a fixed order.
#[must_use]
pub fn sum(x: &[f32]) -> f64 {
    dispatch!(sum_on(x: &[f32]) -> f64)
}
#[inline(always)]
fn sum_on<S: Simd>(s: S, x: &[f32]) -> f64 {
    let (mut acc, one) = (s.zero64(), s.splat(1.0));
    sweep!(S, x.len(), |i, w| {
        // SAFETY: i + w <= x.len() by sweep!.
        acc = s.fma64(unsafe { s.load_n(x.as_ptr().add(i), w) }, one, acc);
    });
    s.sum64(acc)
}

/// The index of the first infinite or NaN value.
#[must_use]
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    let start = dispatch!(non_finite_block(x: &[f32]) -> Option<usize>)?;
    x[start..].iter().position(|v| !v.is_finite()).map(|i| start + i)
}
#[inline(always)]
fn non_finite_block<S: Simd>(s: S, x: &[f32]) -> Option<usize> {
    sweep!(S, x.len(), |i, w| {
        // SAFETY: i + w <= x.len() by sweep!; lanes after w are zero, so finite.
        if s.any_non_finite(unsafe { s.load_n(x.as_ptr().add(i), w) }) {
            return Some(i);
        }
    });
    None
}

/// Rows that are summed before they join the total: bounds the length of a chain of additions.
const BLOCK_ROWS: usize = 128;

/// Column sums of dy [rows, n]: db = Σ rows, or db += Σ rows with `accumulate`. Eight rows are added as a
/// tree, their sums in blocks of 128 rows.
///
/// # Panics
/// If dy is not whole rows.
pub fn bias_grad(db: &mut [f32], dy: &[f32], accumulate: bool) {
    num_rows(dy.len(), db.len(), "bias_grad");
    if !accumulate {
        db.fill(0.0);
    }
    with_scratch(db.len(), |block| dispatch!(bias_grad_on(db: &mut [f32], dy: &[f32], block: &mut [f32])));
}
#[inline(always)]
fn bias_grad_on<S: Simd>(s: S, db: &mut [f32], dy: &[f32], block: &mut [f32]) {
    let n = db.len();
    assert!(block.len() == n);
    for rows in dy.chunks(BLOCK_ROWS * n) {
        block.fill(0.0);
        let mut eights = rows.chunks_exact(8 * n);
        for eight in &mut eights {
            sweep!(S, n, |i, w| {
                // SAFETY: eight holds 8 rows of n, block n values, and i + w <= n.
                unsafe {
                    let row = eight.as_ptr().add(i);
                    let at = |r: usize| row.add(r * n);
                    let a = s.add(s.load_n(at(0), w), s.load_n(at(1), w));
                    let b = s.add(s.load_n(at(2), w), s.load_n(at(3), w));
                    let c = s.add(s.load_n(at(4), w), s.load_n(at(5), w));
                    let d = s.add(s.load_n(at(6), w), s.load_n(at(7), w));
                    let p = block.as_mut_ptr().add(i);
                    s.store_n(p, w, s.add(s.load_n(p, w), s.add(s.add(a, b), s.add(c, d))));
                }
            });
        }
        for row in eights.remainder().chunks_exact(n) {
            add_into(s, block, row);
        }
        add_into(s, db, block);
    }
}

/// y += x, by element.
#[inline(always)]
pub(super) fn add_into<S: Simd>(s: S, y: &mut [f32], x: &[f32]) {
    assert!(y.len() == x.len());
    sweep!(S, y.len(), |i, w| {
        // SAFETY: i + w <= both lengths.
        unsafe {
            let p = y.as_mut_ptr().add(i);
            s.store_n(p, w, s.add(s.load_n(p, w), s.load_n(x.as_ptr().add(i), w)));
        }
    });
}

/// out = ((parts\[0] + parts\[1]) + parts\[2]) + ..., all of one length; zeros if there are none.
///
/// # Panics
/// If the lengths differ.
pub fn reduce_sum(out: &mut [f32], parts: &[&[f32]]) {
    for part in parts {
        same_len(out.len(), part.len(), "reduce_sum");
    }
    dispatch!(reduce_sum_on(out: &mut [f32], parts: &[&[f32]]))
}
#[inline(always)]
fn reduce_sum_on<S: Simd>(s: S, out: &mut [f32], parts: &[&[f32]]) {
    let Some((first, rest)) = parts.split_first() else {
        out.fill(0.0);
        return;
    };
    sweep!(S, out.len(), |i, w| {
        // SAFETY: i + w <= out.len(), the length of every part.
        unsafe {
            let mut acc = s.load_n(first.as_ptr().add(i), w);
            for part in rest {
                acc = s.add(acc, s.load_n(part.as_ptr().add(i), w));
            }
            s.store_n(out.as_mut_ptr().add(i), w, acc);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, each_isa, values, wide};

    #[test]
    fn sums_are_accurate() {
        let tenth = vec![0.1f32; 4_000_001];
        each_isa(|isa| {
            let exact = f64::from(0.1f32) * tenth.len() as f64;
            assert!((sum(&tenth) / exact - 1.0).abs() < 1e-12, "{isa:?}");
            for len in [0, 1, 3, 17, 27, 65, 1000] {
                let (a, b) = (values(len, 1), values(len, 2));
                let want: f64 = wide(&a).iter().zip(wide(&b)).map(|(a, b)| a * b).sum();
                assert!((dot(&a, &b) - want).abs() < 1e-12, "{isa:?} dot of {len}");
                assert!((sum_sq(&a) - dot(&a, &a)).abs() == 0.0);
                assert!((sum(&a) - wide(&a).iter().sum::<f64>()).abs() < 1e-12, "{isa:?} sum of {len}");
            }
        });
    }

    #[test]
    fn finds_the_first_non_finite_value() {
        each_isa(|isa| {
            for len in [1, 3, 17, 65, 200] {
                let clean = vec![f32::MAX; len];
                assert_eq!(first_non_finite(&clean), None, "{isa:?}");
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in 0..len {
                        let mut x = clean.clone();
                        x[at] = bad;
                        x[len - 1] = bad;
                        assert_eq!(first_non_finite(&x), Some(at), "{isa:?} {bad} of {len}");
                    }
                }
            }
        });
    }

    #[test]
    fn bias_grad_sums_columns() {
        for (rows, n) in [(0, 4), (1, 1), (7, 3), (9, 17), (300, 27), (4160, 65), (33, 192)] {
            let (start, mut dy) = (values(n, 1), values(rows * n, 2));
            dy.iter_mut().for_each(|v| *v += 1.0);
            let columns: Vec<f64> = (0..n).map(|c| dy.iter().skip(c).step_by(n).map(|v| f64::from(*v)).sum()).collect();
            each_isa(|isa| {
                let mut db = start.clone();
                bias_grad(&mut db, &dy, false);
                assert_close(&db, &columns, 4e-7, &format!("bias_grad {rows}x{n} {isa:?}"));
                let sum: Vec<f64> = columns.iter().zip(&start).map(|(c, s)| c + f64::from(*s)).collect();
                let mut more = start.clone();
                bias_grad(&mut more, &dy, true);
                assert_close(&more, &sum, 4e-7, &format!("bias_grad += {rows}x{n} {isa:?}"));
            });
        }
    }

    #[test]
    fn reduce_sum_adds_in_order() {
        for len in [1, 3, 17, 65] {
            let parts: Vec<Vec<f32>> = (0..4).map(|i| values(len, i)).collect();
            each_isa(|_| {
                for count in 0..=parts.len() {
                    let slices: Vec<&[f32]> = parts[..count].iter().map(Vec::as_slice).collect();
                    let mut out = vec![f32::NAN; len];
                    reduce_sum(&mut out, &slices);
                    for (i, got) in out.iter().enumerate() {
                        let want = slices.iter().map(|p| p[i]).reduce(|a, b| a + b).unwrap_or(0.0);
                        assert_eq!(*got, want);
                    }
                }
            });
        }
    }
}
