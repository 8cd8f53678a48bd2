//! Operations on tokens: patch embedding, row selection, and the decoder's unshuffle.

use std::ops::Range;
use std::sync::Arc;

use super::{CpuTensor, DfdxCpu};
use crate::engine::ops::{TokenOrder, TokenWeights};
use crate::layout::Weight;
use mlomae_kernels::{self as kernels, Mat};

impl DfdxCpu {
    /// [`Engine::tokens`](crate::engine::Engine::tokens).
    pub(super) fn embed_tokens(
        &mut self,
        patches: &CpuTensor,
        num_patches: usize,
        order: Option<&Arc<TokenOrder>>,
        w: &TokenWeights,
    ) -> CpuTensor {
        let (values, dim) = (patches.columns, w.proj.outputs);
        let batch = patches.rows / num_patches;
        let num_visible = order.map_or(num_patches, |o| o.num_visible);
        let rows = batch * num_visible;
        // Gathering before the embedding saves the product of the masked patches.
        let visible = match order {
            None => patches.values.clone(),
            Some(order) => {
                let mut gathered = self.arena.take(rows * values);
                for (row, (out, &patch)) in gathered.chunks_exact_mut(values).zip(&order.kept).enumerate() {
                    let source = (row / num_visible * num_patches + patch as usize) * values;
                    out.copy_from_slice(&patches.values[source..source + values]);
                }
                Arc::new(gathered)
            }
        };
        let params = self.params_of(w.cls.level).clone();
        let mut embedded = self.arena.take(rows * dim);
        let a = Mat { data: &visible, ld: values, trans: false };
        let b = Mat { data: &params[w.proj.weight.range()], ld: values, trans: true };
        kernels::matmul_in(self.factors, &mut embedded, dim, a, b, rows, dim, values, false);
        kernels::add_bias(&mut embedded, &params[w.proj.bias.range()]);
        let (cls, pos) = (&params[w.cls.range()], &params[w.pos.range()]);
        let mut x = self.arena.take(batch * (1 + num_visible) * dim);
        for (image, tokens) in x.chunks_exact_mut((1 + num_visible) * dim).enumerate() {
            let (first, rest) = tokens.split_at_mut(dim);
            first.copy_from_slice(cls);
            kernels::add(first, &pos[..dim]);
            let start = image * num_visible;
            rest.copy_from_slice(&embedded[start * dim..(start + num_visible) * dim]);
            match order {
                None => kernels::add(rest, &pos[dim..]),
                Some(order) => {
                    for (token, &patch) in rest.chunks_exact_mut(dim).zip(&order.kept[start..start + num_visible]) {
                        let place = (1 + patch as usize) * dim;
                        kernels::add(token, &pos[place..place + dim]);
                    }
                }
            }
        }
        let sink = self.sink(&[&w.cls, &w.pos]);
        let out = self.output(x, batch * (1 + num_visible), dim, sink.is_some());
        if let Some(sink) = sink {
            let (w, order, grains) = (*w, order.cloned(), self.grains);
            let projection = self.weight_gradient(&w.proj, rows);
            self.push(&out, move |_, dx| {
                let mut sink = sink.borrow_mut();
                let mut dembedded = embedded;
                let tokens = dx.chunks_exact((1 + num_visible) * dim);
                for (out, tokens) in dembedded.chunks_exact_mut(num_visible * dim).zip(tokens) {
                    out.copy_from_slice(&tokens[dim..]);
                }
                let image = |image: usize| &dx[image * (1 + num_visible) * dim..(image + 1) * (1 + num_visible) * dim];
                sink.sum(&w.cls, grains.num(), |grain, dcls| {
                    dcls.fill(0.0);
                    grains.rows(grain, batch).for_each(|i| kernels::add(dcls, &image(i)[..dim]));
                });
                sink.sum(&w.pos, grains.num(), |grain, dpos| {
                    dpos.fill(0.0);
                    for i in grains.rows(grain, batch) {
                        kernels::add(&mut dpos[..dim], &image(i)[..dim]);
                        for (place, token) in image(i)[dim..].chunks_exact(dim).enumerate() {
                            let patch = order.as_ref().map_or(place, |o| o.kept[i * num_visible + place] as usize);
                            kernels::add(&mut dpos[(1 + patch) * dim..(2 + patch) * dim], token);
                        }
                    }
                });
                drop(sink);
                projection.run(&dembedded, &visible);
                Ok(())
            });
        }
        out
    }

    /// Rows `picked` of every group of `period` rows.
    pub(super) fn pick_rows(&mut self, x: &CpuTensor, period: usize, picked: Range<usize>) -> CpuTensor {
        let (groups, n) = (x.rows / period, x.columns);
        let span = picked.start * n..picked.end * n;
        let mut y = self.arena.take(groups * span.len());
        for (out, group) in y.chunks_exact_mut(span.len()).zip(x.values.chunks_exact(period * n)) {
            out.copy_from_slice(&group[span.clone()]);
        }
        let out = self.output(y, groups * picked.len(), n, x.slot.is_some());
        if let Some(slot) = x.slot.clone() {
            let arena = self.arena.clone();
            self.push(&out, move |grads, dy| {
                slot.accumulate(grads, &arena, |dx, accumulate| {
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    for (group, part) in dx.chunks_exact_mut(period * n).zip(dy.chunks_exact(span.len())) {
                        kernels::add(&mut group[span.clone()], part);
                    }
                })
            });
        }
        out
    }

    /// [`Engine::mean_rows`](crate::engine::Engine::mean_rows); sums are f64.
    pub(super) fn average_rows(&mut self, x: &CpuTensor, period: usize) -> CpuTensor {
        let (groups, n) = (x.rows / period, x.columns);
        let scale = 1.0 / period as f64;
        let (mut y, mut sum) = (self.arena.take(groups * n), vec![0f64; n]);
        for (out, group) in y.chunks_exact_mut(n).zip(x.values.chunks_exact(period * n)) {
            sum.fill(0.0);
            for row in group.chunks_exact(n) {
                sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            out.iter_mut().zip(&sum).for_each(|(out, sum)| *out = (sum * scale) as f32);
        }
        let out = self.output(y, groups, n, x.slot.is_some());
        if let Some(slot) = x.slot.clone() {
            let arena = self.arena.clone();
            self.push(&out, move |grads, mut dy| {
                dy.iter_mut().for_each(|d| *d *= scale as f32);
                slot.accumulate(grads, &arena, |dx, accumulate| {
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    for (group, part) in dx.chunks_exact_mut(period * n).zip(dy.chunks_exact(n)) {
                        group.chunks_exact_mut(n).for_each(|row| kernels::add(row, part));
                    }
                })
            });
        }
        out
    }

    /// [`Engine::unshuffle`](crate::engine::Engine::unshuffle).
    pub(super) fn restore_tokens(
        &mut self,
        x: &CpuTensor,
        order: &Arc<TokenOrder>,
        mask_token: &Weight,
        pos: &Weight,
    ) -> CpuTensor {
        let dim = x.columns;
        let (num_patches, num_visible) = (order.num_patches, order.num_visible);
        let batch = x.rows / (1 + num_visible);
        let params = self.params_of(pos.level).clone();
        let (token, position) = (&params[mask_token.range()], &params[pos.range()]);
        let mut y = self.arena.take(batch * (1 + num_patches) * dim);
        for (image, tokens) in y.chunks_exact_mut((1 + num_patches) * dim).enumerate() {
            let source = &x.values[image * (1 + num_visible) * dim..(image + 1) * (1 + num_visible) * dim];
            let ranks = &order.rank[image * num_patches..(image + 1) * num_patches];
            tokens.copy_from_slice(position);
            kernels::add(&mut tokens[..dim], &source[..dim]);
            for (out, &rank) in tokens[dim..].chunks_exact_mut(dim).zip(ranks) {
                let rank = rank as usize;
                kernels::add(out, if rank < num_visible { &source[(1 + rank) * dim..(2 + rank) * dim] } else { token });
            }
        }
        let sink = self.sink(&[mask_token, pos]);
        let out = self.output(y, batch * (1 + num_patches), dim, x.slot.is_some() || sink.is_some());
        let (slot, order, arena) = (x.slot.clone(), order.clone(), self.arena.clone());
        let (mask_token, pos, rows, grains) = (*mask_token, *pos, x.rows, self.grains);
        self.push(&out, move |grads, dy| {
            let image = |image: usize| {
                let tokens = &dy[image * (1 + num_patches) * dim..(image + 1) * (1 + num_patches) * dim];
                let ranks = &order.rank[image * num_patches..(image + 1) * num_patches];
                (tokens, tokens[dim..].chunks_exact(dim).zip(ranks.iter().map(|&rank| rank as usize)))
            };
            if let Some(sink) = sink {
                let mut sink = sink.borrow_mut();
                sink.sum(&mask_token, grains.num(), |grain, dtoken| {
                    dtoken.fill(0.0);
                    let masked =
                        grains.rows(grain, batch).flat_map(|i| image(i).1).filter(|(_, rank)| *rank >= num_visible);
                    masked.for_each(|(cotangent, _)| kernels::add(dtoken, cotangent));
                });
                sink.sum(&pos, grains.num(), |grain, dpos| {
                    dpos.fill(0.0);
                    grains.rows(grain, batch).for_each(|i| kernels::add(dpos, image(i).0));
                });
            }
            let Some(slot) = slot else { return Ok(()) };
            let mut dx = arena.take(rows * dim);
            for (i, target) in dx.chunks_exact_mut((1 + num_visible) * dim).enumerate() {
                let (tokens, patches) = image(i);
                target[..dim].copy_from_slice(&tokens[..dim]);
                for (cotangent, rank) in patches.filter(|(_, rank)| *rank < num_visible) {
                    target[(1 + rank) * dim..(2 + rank) * dim].copy_from_slice(cotangent);
                }
            }
            slot.give(grads, &arena, dx)
        });
        out
    }
}
