//! Heads of tasks: on the device where the task says what its head is ([`LinearHead`]), else on the host. In f64 either
//! way.

use mlomae_device::ops::HeadNorm;
use mlomae_device::{Mem, View};

use super::lane::CudaLane;
use super::levels::Taps;
use crate::error::ModelError;
use crate::levels::vectors::{norm_wide, shifted_wide, step_size, widen};
use crate::tasks::batch::Batch;
use crate::tasks::{LinearHead, Noise, Share, Targets, Tokens, Want};

/// Values in f64, where the head is computed.
#[derive(Clone, Debug)]
pub(super) enum Wide {
    Host(Vec<f64>),
    Device(Mem<f64>),
}

/// A head on a batch, as [`Share`].
#[derive(Debug)]
pub(super) struct Evaluated {
    pub(super) loss: f64,
    pub(super) figures: Vec<f64>,
    /// ∂ℓ/∂c; empty unless wanted.
    pub(super) dc: Wide,
    /// ∂ℓ/∂Z of each tap; empty unless wanted.
    pub(super) dz: Vec<Wide>,
}

impl From<Share> for Evaluated {
    fn from(share: Share) -> Self {
        let Share { loss, figures, dc, dz } = share;
        Evaluated { loss, figures, dc: Wide::Host(dc), dz: dz.into_iter().map(Wide::Host).collect() }
    }
}

impl CudaLane {
    /// c in f64, where the head is computed.
    pub(super) fn head_weights(&self, c: &Mem<f32>) -> Result<Wide, ModelError> {
        if self.linear_head.is_none() {
            return Ok(Wide::Host(widen(&self.stream.download(c.view())?)));
        }
        let wide = self.stream.take(c.len());
        self.stream.widen_f64(wide.view(), c.view());
        Ok(Wide::Device(wide))
    }

    /// Tokens of the taps, where the head is computed; `taps` are on the device.
    pub(super) fn taps(&self, taps: Vec<Mem<f32>>) -> Result<Taps, ModelError> {
        if self.linear_head.is_some() {
            return Ok(Taps::Device(taps));
        }
        let taps: Result<_, _> = taps.iter().map(|z| self.stream.download(z.view())).collect();
        Ok(Taps::Host(taps?))
    }

    /// Tokens of the taps on the host, wherever the head is computed.
    pub(super) fn taps_on_host(&self, taps: &Taps) -> Result<Vec<Vec<f32>>, ModelError> {
        match taps {
            Taps::Host(taps) => Ok(taps.clone()),
            Taps::Device(taps) => Ok(taps.iter().map(|z| self.stream.download(z.view())).collect::<Result<_, _>>()?),
        }
    }

    /// The values on the host.
    pub(super) fn on_host(&self, values: &Wide) -> Result<Vec<f64>, ModelError> {
        match values {
            Wide::Host(values) => Ok(values.clone()),
            Wide::Device(values) => Ok(self.stream.download(values.view())?),
        }
    }

    /// The values on the device, in f32.
    pub(super) fn narrowed(&self, values: &Wide) -> Mem<f32> {
        match values {
            Wide::Host(values) => self.stream.upload(&values.iter().map(|&value| value as f32).collect::<Vec<_>>()),
            Wide::Device(values) => self.narrow_difference(values, None, 1.0),
        }
    }

    fn narrow_difference(&self, x: &Mem<f64>, y: Option<&Mem<f64>>, divisor: f64) -> Mem<f32> {
        let out = self.stream.take(x.len());
        self.stream.narrow_difference_f64(out.view(), x.view(), y.map(Mem::view), divisor);
        out
    }

    /// c + step·v.
    fn shifted_head(&self, c: &Wide, step: f64, v: &Wide) -> Result<Wide, ModelError> {
        Ok(match (c, v) {
            (Wide::Device(c), Wide::Device(v)) => {
                let out = self.stream.take(c.len());
                self.stream.scale_add_f64(out.view(), c.view(), step, v.view());
                Wide::Device(out)
            }
            _ => Wide::Host(shifted_wide(&self.on_host(c)?, step, &self.on_host(v)?)),
        })
    }

    /// c + εv0 and c − εv0 with ε = α/‖v0‖₂, and ε. `v0` is given with its copy on the host.
    pub(super) fn both_sides(
        &self,
        c: &Wide,
        (v0, on_host): (&Wide, &[f64]),
        alpha: f64,
    ) -> Result<([Wide; 2], f64), ModelError> {
        let epsilon = step_size(alpha, norm_wide(on_host));
        Ok(([self.shifted_head(c, epsilon, v0)?, self.shifted_head(c, -epsilon, v0)?], epsilon))
    }

    /// (δ₋ − δ₊)/2ε for each tap, as [`cotangent_difference`](crate::levels::mask::cotangent_difference), in f32.
    pub(super) fn cotangent_difference(
        &self,
        c: &Wide,
        v0: (&Wide, &[f64]),
        alpha: f64,
        taps: &Taps,
        y: &Targets,
    ) -> Result<Vec<Mem<f32>>, ModelError> {
        let ([plus, minus], epsilon) = self.both_sides(c, v0, alpha)?;
        let at = |c: &Wide| self.evaluate(c, taps, y, None, Want { dc: false, dz: true });
        let (plus, minus) = (at(&plus)?, at(&minus)?);
        let divisor = 2.0 * epsilon;
        let difference = |(minus, plus): (&Wide, &Wide)| match (minus, plus) {
            (Wide::Device(minus), Wide::Device(plus)) => Ok(self.narrow_difference(minus, Some(plus), divisor)),
            _ => {
                let (minus, plus) = (self.on_host(minus)?, self.on_host(plus)?);
                let difference = minus.iter().zip(&plus).map(|(minus, plus)| (minus - plus) / divisor).collect();
                Ok(self.narrowed(&Wide::Host(difference)))
            }
        };
        minus.dz.iter().zip(&plus.dz).map(difference).collect()
    }

    /// The task on a batch's taps.
    ///
    /// # Errors
    /// When targets are not those of the task, or the device fails.
    pub(super) fn evaluate(
        &self,
        c: &Wide,
        taps: &Taps,
        y: &Targets,
        noise: Option<Noise>,
        want: Want,
    ) -> Result<Evaluated, ModelError> {
        match (&self.linear_head, c, taps) {
            (Some(head), Wide::Device(c), Taps::Device(taps)) if taps.len() == 1 => {
                self.evaluate_here(head, c, &taps[0], y, noise, want)
            }
            (_, c, Taps::Host(taps)) => Ok(self.evaluate_on_host(&self.on_host(c)?, taps, y, noise, want)?.into()),
            (_, _, Taps::Device(_)) => {
                // A graph that failed has left no tokens.
                self.stream.wait()?;
                Err(ModelError::Lane { lane: "cuda", problem: "a head and its tokens are in two places".to_owned() })
            }
        }
    }

    /// A linear head. Losses of images are added on the host, in their order.
    fn evaluate_here(
        &self,
        head: &LinearHead,
        c: &Mem<f64>,
        z: &Mem<f32>,
        y: &Targets,
        noise: Option<Noise>,
        want: Want,
    ) -> Result<Evaluated, ModelError> {
        let stream = &self.stream;
        let labels: Vec<u32> = head.classes(y)?.iter().map(|&class| class.unsigned_abs()).collect();
        let (images, dim, classes) = (labels.len(), head.gamma.len(), head.bias.len());
        let [num_images, _] = self.model.task.total(y);
        let factors = noise.map(|noise| stream.upload(&noise.factors(images, dim)));
        let w = HeadNorm {
            gamma: c.slice(head.gamma.clone()),
            beta: c.slice(head.beta.clone()),
            factors: factors.as_ref().map(Mem::view),
        };
        let take = |len: usize| stream.take::<f64>(len);
        let (normed, features, scale) = (take(z.len()), take(z.len()), take(images));
        stream.head_norm(features.view(), normed.view(), scale.view(), z.view(), &w);
        let (weight, bias) = (c.slice(head.weight.clone()), c.slice(head.bias.clone()));
        let logits = take(images * classes);
        let shape = [images, classes, dim];
        stream.product_f64(logits.view(), [features.view(), weight], [false, true], shape, Some(bias));
        let (results, labels) = (take(2 * images), stream.upload(&labels));
        let (losses, right) = (results.slice(0..images), results.slice(images..2 * images));
        stream.cross_entropy_f64(losses, right, logits.view(), labels.view(), num_images);
        let (mut dc, mut dz) = (Mem::default(), Vec::new());
        if want != Want::LOSS {
            let (dlogits, dy) = (logits, take(z.len()));
            stream.product_f64(dy.view(), [dlogits.view(), weight], [false; 2], [images, dim, classes], None);
            let cotangent = want.dz.then(|| take(z.len()));
            stream.head_norm_grad(cotangent.as_ref().map(Mem::view), dy.view(), normed.view(), scale.view(), &w);
            dz.extend(cotangent.map(Wide::Device));
            if want.dc {
                dc = take(c.len());
                let place = |range: &std::ops::Range<usize>| -> View<'_, f64> { dc.slice(range.clone()) };
                let shape = [classes, dim, images];
                let factors = [dlogits.view(), features.view()];
                stream.product_f64(place(&head.weight), factors, [true, false], shape, None);
                stream.column_sums_f64(place(&head.bias), dlogits.view(), None);
                stream.column_sums_f64(place(&head.gamma), dy.view(), Some(normed.view()));
                stream.column_sums_f64(place(&head.beta), dy.view(), None);
            }
        }
        let results = stream.download(results.view())?;
        let (losses, right) = results.split_at(images);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / num_images;
        Ok(Evaluated { loss: mean(losses), figures: vec![mean(right)], dc: Wide::Device(dc), dz })
    }

    /// The taps as the task reads them.
    pub(super) fn tokens<'a>(&self, taps: &'a [Vec<f32>]) -> Vec<Tokens<'a>> {
        let c = &self.model.config;
        let reads = self.model.task.reads().iter().zip(taps);
        reads.map(|(tap, values)| Tokens { per_image: tap.tokens(c.num_patches()), dim: c.dim, values }).collect()
    }

    /// The task's own evaluation, on the threads for heads.
    fn evaluate_on_host(
        &self,
        c: &[f64],
        taps: &[Vec<f32>],
        y: &Targets,
        noise: Option<Noise>,
        want: Want,
    ) -> Result<Share, ModelError> {
        const IMAGES_AT_A_TIME: usize = 8;
        let task = &*self.model.task;
        let batch = Batch { task, y, totals: &task.totals(y), noise, grain: IMAGES_AT_A_TIME };
        batch.evaluate(self.heads(), c, &self.tokens(taps), want)
    }
}
