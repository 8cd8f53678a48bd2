//! Tests of the operations on tokens, and what tests of their neighbours share.

use half::bf16;

use super::*;
use crate::memory::{Act, Element, Mem};
use crate::stream::{Precision, Priority};
use crate::twins::{orders, values};

/// A stream on which an operation is tried, with what the tests of all operations need.
pub(in crate::ops) struct Trial {
    pub(in crate::ops) stream: Stream,
}

impl Trial {
    /// `values` as an activation.
    pub(in crate::ops) fn act(&self, values: &[f32]) -> Act {
        match self.stream.precision() {
            Precision::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                Act::Bf16(self.stream.upload(&rounded))
            }
            _ => Act::F32(self.stream.upload(values)),
        }
    }

    /// `values` as an activation holds them.
    pub(in crate::ops) fn rounded(&self, values: &[f32]) -> Vec<f32> {
        let is_bf16 = self.stream.precision() == Precision::Bf16;
        values.iter().map(|v| if is_bf16 { bf16::from_f32(*v).to_f32() } else { *v }).collect()
    }

    /// Room for a result, with NaN in it.
    pub(in crate::ops) fn nan(&self, len: usize) -> Mem<f32> {
        self.stream.upload(&vec![f32::NAN; len])
    }

    /// The same for an activation.
    pub(in crate::ops) fn nan_act(&self, len: usize) -> Act {
        self.act(&vec![f32::NAN; len])
    }

    /// Values of a vector.
    pub(in crate::ops) fn read<T: Element>(&self, of: &Mem<T>) -> Vec<T> {
        self.stream.download(of.view()).unwrap()
    }

    /// Values of an activation.
    pub(in crate::ops) fn read_act(&self, of: &Act) -> Vec<f32> {
        match of {
            Act::F32(values) => self.read(values),
            Act::Bf16(values) => self.read(values).iter().map(|v| v.to_f32()).collect(),
        }
    }
}

/// Runs `f` in f32 and in bf16, each under three schedules of the device; its results must have the same bits.
pub(in crate::ops) fn each(f: impl Fn(&Trial) -> Vec<Vec<f32>>) {
    for precision in [Precision::F32, Precision::Bf16] {
        crate::testing::schedules(|gpu| {
            let trial = Trial { stream: Stream::new(gpu, precision, Priority::Normal).unwrap() };
            f(&trial).into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>()
        });
    }
}

/// Asserts |got - want| <= tolerance · max(1, largest |want|) for every value.
#[track_caller]
pub(in crate::ops) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs() / size;
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {w} (error {error:.2e})");
    }
}

/// B, L, n, D: odd and even widths, none and all masked, more images than a block sums at a time.
const SHAPES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [3, 5, 2, 7], [2, 9, 9, 8], [37, 4, 1, 132], [70, 3, 2, 12], [2, 6, 3, 260]];

#[test]
fn rows_are_gathered_and_picked() {
    for [batch, num_patches, num_visible, columns] in SHAPES {
        each(|t| {
            let (kept, _) = orders(batch, num_patches, num_visible);
            let x = values(batch * num_patches * columns, 1);
            let (on_device, seen) = (t.act(&x), t.rounded(&x));
            let row = |row: usize| seen[row * columns..(row + 1) * columns].to_vec();
            let out = t.nan_act(batch * num_visible * columns);
            t.stream.gather_rows(out.view(), on_device.view(), t.stream.upload(&kept).view(), num_patches);
            let source = |(i, patch): (usize, &u32)| row(i / num_visible * num_patches + *patch as usize);
            assert_eq!(t.read_act(&out), kept.iter().enumerate().flat_map(source).collect::<Vec<_>>());

            let mut results = vec![t.read_act(&out)];
            for first in [true, false] {
                let rows: Vec<usize> = (0..batch * num_patches).filter(|r| (r % num_patches == 0) == first).collect();
                let picked = t.nan_act(rows.len() * columns);
                t.stream.pick_rows(picked.view(), on_device.view(), columns, num_patches, first);
                let want: Vec<f32> = rows.iter().flat_map(|r| row(*r)).collect();
                assert_eq!(t.read_act(&picked), want);
                let dx = t.nan_act(x.len());
                t.stream.pick_rows_grad(dx.view(), picked.view(), columns, num_patches, first);
                let want: Vec<f32> = seen
                    .iter()
                    .enumerate()
                    .map(|(i, v)| if (i / columns % num_patches == 0) == first { *v } else { 0.0 })
                    .collect();
                assert_eq!(t.read_act(&dx), want);
                results.push(t.read_act(&dx));
            }
            results
        });
    }
}

#[test]
fn rows_are_averaged_and_repeated() {
    for [batch, period, _, columns] in SHAPES {
        each(|t| {
            let x = values(batch * period * columns, 1);
            let (mean, again) = (t.nan(batch * columns), t.nan(x.len()));
            t.stream.mean_rows(mean.view(), t.stream.upload(&x).view(), columns, period);
            let of = |i: usize| {
                let (group, column) = (i / columns, i % columns);
                let row = |row: usize| f64::from(x[(group * period + row) * columns + column]);
                (0..period).map(row).sum::<f64>() / period as f64
            };
            assert_close(&t.read(&mean), &(0..batch * columns).map(of).collect::<Vec<_>>(), 1e-6, "mean_rows");
            t.stream.repeat_rows(again.view(), mean.view(), columns, period);
            let seen = t.read(&mean);
            let rows = seen.chunks_exact(columns).flat_map(|row| std::iter::repeat_n(row, period).flatten().copied());
            assert_eq!(t.read(&again), rows.collect::<Vec<f32>>());
            vec![seen]
        });
    }
}

#[test]
fn tokens_are_assembled_with_gradients() {
    for ([batch, num_patches, num_visible, columns], masks) in SHAPES.into_iter().flat_map(|s| [(s, true), (s, false)])
    {
        let num_visible = if masks { num_visible } else { num_patches };
        each(|t| {
            let (kept, rank) = orders(batch, num_patches, num_visible);
            let place = |row: usize| if masks { kept[row] as usize } else { row % num_visible };
            let (on_kept, on_rank) = (t.stream.upload(&kept), t.stream.upload(&rank));
            let embedded = values(batch * num_visible * columns, 1);
            let (cls, pos) = (values(columns, 2), values((1 + num_patches) * columns, 3));
            let x = t.nan(batch * (1 + num_visible) * columns);
            let (on_cls, on_pos) = (t.stream.upload(&cls), t.stream.upload(&pos));
            let on_kept = masks.then(|| on_kept.view());
            let on_embedded = t.act(&embedded);
            let s = &t.stream;
            s.assemble_tokens(x.view(), on_embedded.view(), on_cls.view(), on_pos.view(), on_kept, num_patches);
            let seen = t.rounded(&embedded);
            let want = (0..x.len()).map(|i| {
                let (row, column) = (i / columns, i % columns);
                let (image, token) = (row / (1 + num_visible), row % (1 + num_visible));
                if token == 0 {
                    return cls[column] + pos[column];
                }
                let row = image * num_visible + token - 1;
                seen[row * columns + column] + pos[(1 + place(row)) * columns + column]
            });
            assert_eq!(t.read(&x), want.collect::<Vec<_>>());

            let dx = values(x.len(), 4);
            let (dembedded, dcls) = (t.nan_act(embedded.len()), t.nan(columns));
            let (dpos, on_dx) = (t.nan(pos.len()), t.stream.upload(&dx));
            let on_rank = masks.then(|| on_rank.view());
            let (dcls_at, dpos_at) = (dcls.view(), dpos.view());
            let d = dembedded.view();
            s.assemble_tokens_grad(d, dcls_at, dpos_at, on_dx.view(), on_rank, num_patches, num_visible);
            let mut sums = vec![0.0; pos.len()];
            let mut copies = Vec::new();
            for (row, d) in dx.chunks_exact(columns).enumerate() {
                let (image, token) = (row / (1 + num_visible), row % (1 + num_visible));
                let place = if token == 0 { 0 } else { 1 + place(image * num_visible + token - 1) };
                sums[place * columns..].iter_mut().zip(d).for_each(|(sum, d)| *sum += f64::from(*d));
                if token > 0 {
                    copies.extend_from_slice(d);
                }
            }
            assert_eq!(t.read_act(&dembedded), t.rounded(&copies));
            assert_close(&t.read(&dpos), &sums, 2e-6, "dpos");
            assert_eq!(t.read(&dcls), t.read(&dpos)[..columns]);
            vec![t.read(&x), t.read(&dpos), t.read_act(&dembedded)]
        });
    }
}

#[test]
fn masked_places_are_filled_with_gradients() {
    for [batch, num_patches, num_visible, columns] in SHAPES {
        each(|t| {
            let (kept, rank) = orders(batch, num_patches, num_visible);
            let (on_kept, on_rank) = (t.stream.upload(&kept), t.stream.upload(&rank));
            let x = values(batch * (1 + num_visible) * columns, 1);
            let (token, pos) = (values(columns, 2), values((1 + num_patches) * columns, 3));
            let y = t.nan(batch * (1 + num_patches) * columns);
            let (on_x, on_token, on_pos) = (t.act(&x), t.stream.upload(&token), t.stream.upload(&pos));
            let (s, r) = (&t.stream, on_rank.view());
            s.unshuffle(y.view(), on_x.view(), r, on_token.view(), on_pos.view(), num_patches, num_visible);
            let seen = t.rounded(&x);
            // The row of x at each row of y, if it has one.
            let source = |row: usize| {
                let (image, place) = (row / (1 + num_patches), row % (1 + num_patches));
                let token = if place == 0 { 0 } else { 1 + rank[image * num_patches + place - 1] as usize };
                (token <= num_visible).then_some(image * (1 + num_visible) + token)
            };
            let want = (0..y.len()).map(|i| {
                let (row, column) = (i / columns, i % columns);
                source(row).map_or(token[column], |from| seen[from * columns + column])
                    + pos[row % (1 + num_patches) * columns + column]
            });
            assert_eq!(t.read(&y), want.collect::<Vec<_>>());

            let dy = values(y.len(), 4);
            let (dx, dtoken, dpos) = (t.nan_act(x.len()), t.nan(columns), t.nan(pos.len()));
            let on_dy = t.stream.upload(&dy);
            let (k, d, at, to) = (on_kept.view(), on_dy.view(), dtoken.view(), dpos.view());
            s.unshuffle_grad(dx.view(), at, to, d, k, r, num_patches, num_visible);
            let (mut of_pos, mut of_token) = (vec![0.0; pos.len()], vec![0.0; columns]);
            let mut copies = vec![0.0; x.len()];
            for (i, d) in dy.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                of_pos[row % (1 + num_patches) * columns + column] += f64::from(*d);
                match source(row) {
                    Some(from) => copies[from * columns + column] = *d,
                    None => of_token[column] += f64::from(*d),
                }
            }
            assert_eq!(t.read_act(&dx), t.rounded(&copies));
            assert_close(&t.read(&dpos), &of_pos, 2e-6, "dpos");
            assert_close(&t.read(&dtoken), &of_token, 2e-6, "dmask_token");
            vec![t.read(&y), t.read_act(&dx), t.read(&dpos), t.read(&dtoken)]
        });
    }
}

#[test]
fn sums_do_not_depend_on_alignment() {
    let (batch, columns) = (45, 136);
    each(|t| {
        let x = values(batch * columns, 1);
        let shifted = t.stream.upload(&[&[f32::NAN], &x[..]].concat());
        let (aligned, out) = (t.stream.upload(&x), [t.nan(columns), t.nan(columns)]);
        t.stream.sum_rows(out[0].view(), aligned.view(), batch, [columns; 2], RowSum::Set);
        t.stream.sum_rows(out[1].view(), shifted.slice(1..1 + x.len()), batch, [columns; 2], RowSum::Set);
        assert_eq!(t.read(&out[0]), t.read(&out[1]));
        let want: Vec<f64> = (0..columns).map(|c| x.chunks_exact(columns).map(|row| f64::from(row[c])).sum()).collect();
        assert_close(&t.read(&out[0]), &want, 1e-6, "sum_rows");
        vec![t.read(&out[0])]
    });
}

#[test]
fn results_do_not_depend_on_alignment() {
    let [batch, num_patches, num_visible, columns] = [5, 6, 2, 24];
    let (rows, tokens) = (batch * num_patches, batch * (1 + num_visible));
    each(|t| {
        let (kept, rank) = orders(batch, num_patches, num_visible);
        let (kept, rank) = (t.stream.upload(&kept), t.stream.upload(&rank));
        let s = &t.stream;
        fn act(of: &Act, shift: usize) -> ActView<'_> {
            of.view().slice(shift..of.len())
        }
        fn all(of: &Mem<f32>, shift: usize) -> View<'_, f32> {
            of.slice(shift..of.len())
        }
        // Every operand `shift` values behind the start of a block; results are read from there too.
        let results = |shift: usize| {
            let lead = |len: usize, seed: u64| [vec![f32::NAN; shift], values(len, seed)].concat();
            let f32s = |len: usize, seed: u64| s.upload(&lead(len, seed));
            let acts = |len: usize, seed: u64| t.act(&lead(len, seed));
            let (x, y) = (acts(rows * columns, 1), acts(tokens * columns, 2));
            let (dy, pos) = (f32s((batch + rows) * columns, 3), f32s((1 + num_patches) * columns, 4));
            let (token, target) = (f32s(columns, 5), f32s(rows * columns, 6));
            let (to_act, to) = (acts(rows * columns, 7), f32s((batch + rows) * columns, 8));
            let (dtoken, dpos) = (f32s(columns, 9), f32s((1 + num_patches) * columns, 10));
            let (n, l) = (num_visible, num_patches);
            let mut read = Vec::new();
            let mut keep = |results: [Vec<f32>; 3]| read.extend(results.into_iter().flat_map(|r| r[shift..].to_vec()));

            let visible = to_act.view().slice(shift..shift + batch * n * columns);
            let shown = to.slice(shift..shift + tokens * columns);
            s.gather_rows(visible, act(&x, shift), kept.view(), l);
            s.assemble_tokens(shown, visible, all(&token, shift), all(&pos, shift), Some(kept.view()), l);
            let cotangent = dy.slice(shift..shift + tokens * columns);
            s.assemble_tokens_grad(visible, all(&dtoken, shift), all(&dpos, shift), cotangent, Some(rank.view()), l, n);
            keep([t.read(&to), t.read(&dtoken), t.read(&dpos)]);
            s.pick_rows(to_act.view().slice(shift..shift + batch * columns), act(&x, shift), columns, l, true);
            keep([t.read_act(&to_act), vec![0.0; shift], vec![0.0; shift]]);
            s.unshuffle(all(&to, shift), act(&y, shift), rank.view(), all(&token, shift), all(&pos, shift), l, n);
            let dx = to_act.view().slice(shift..shift + tokens * columns);
            s.unshuffle_grad(
                dx,
                all(&dtoken, shift),
                all(&dpos, shift),
                all(&dy, shift),
                kept.view(),
                rank.view(),
                l,
                n,
            );
            keep([t.read(&to), t.read(&dtoken), t.read(&dpos)]);
            s.patch_loss(to.slice(shift..shift + rows), act(&x, shift), all(&target, shift));
            s.patch_loss_grad(act(&to_act, shift), act(&x, shift), all(&target, shift), dy.slice(shift..shift + rows));
            keep([t.read(&to), t.read_act(&to_act), vec![0.0; shift]]);
            s.patch_loss_tangent(
                to.slice(shift..shift + rows),
                act(&x, shift),
                act(&to_act, shift),
                all(&target, shift),
            );
            s.add_positions(all(&target, shift), token.slice(shift..shift + columns));
            keep([t.read(&to), t.read(&target), vec![0.0; shift]]);
            read
        };
        assert_eq!(results(0), results(1));
        vec![results(1)]
    });
}
