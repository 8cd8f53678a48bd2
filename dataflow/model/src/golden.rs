//! Golden vectors: one outer iteration written by an independent reference in float64, and how far ours is from it.
//!
//! A golden file holds initial weights, four batches, and what the reference got: `expect.pretrainK.{loss,scores,mask,patch_loss}` and
//! `.grad.NAME`, `expect.finetune.{loss,grad.NAME}`, `expect.mask.{loss,v_head,v_encoder,indirect,hypergrad_direct,
//! hypergrad_indirect,hypergrad,hypergrad_exact}.NAME` and `expect.after.{pretrain,finetune,mask}.NAME`. The metadata key `config` has
//! the shapes. Dropout is off, and the masking network reads the patch embedding.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{MaskInput, MaskNetKind, ModelConfig, PosEmbed};
use crate::error::ModelError;
use crate::layout::{Layout, ParamSet};
use crate::levels::downstream::{Labelled, evaluate_clean, evaluate_published};
use crate::levels::optimizer::{AdamW, AdamWConfig};
use crate::levels::scoring::{Masker, score};
use crate::levels::{Model, hypergradient, pretrain};
use crate::parallel::arena::{Arena, Buffer, Params};
use crate::parallel::compute::Compute;

/// The `config` metadata of a golden file.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub struct GoldenConfig {
    pub image: usize,
    pub patch: usize,
    pub channels: usize,
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    pub dec_dim: usize,
    pub dec_depth: usize,
    pub dec_heads: usize,
    pub mask_hidden: usize,
    pub classes: usize,
    pub batch: usize,
    pub mask_ratio: f64,
    pub lr: f64,
    pub weight_decay: f64,
    pub alpha: f64,
}

/// A tensor of a golden file; integers have been turned into floats.
#[derive(Clone, Debug)]
pub struct GoldenTensor {
    /// Shape, empty for scalars.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// A golden file's contents.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Shapes and constants.
    pub config: GoldenConfig,
    /// Tensors by name.
    pub tensors: BTreeMap<String, GoldenTensor>,
}

/// One compared quantity.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was compared, for example `pretrain0.grad`; the worst tensor is named behind it.
    pub quantity: String,
    /// Relative error, of the worst tensor where there are several.
    pub error: f64,
    /// The largest error allowed.
    pub limit: f64,
    /// Whether the error is within the limit; an error that is not a number never is.
    pub ok: bool,
}

/// Largest relative errors of a float32 implementation, and shapes beyond which none is computed.
mod limits {
    pub const IMAGE: usize = 1024;
    pub const ATTENTION: usize = 1 << 28;
    pub const VALUE: f64 = 1e-5;
    pub const GRADIENT: f64 = 1e-4;
    pub const FINITE_DIFFERENCE: f64 = 1e-3;
}

impl Golden {
    /// Parses the `config` metadata.
    ///
    /// # Errors
    /// When it is not the expected JSON.
    pub fn parse_config(json: &str) -> Result<GoldenConfig, ModelError> {
        serde_json::from_str(json)
            .map_err(|error| ModelError::Config(format!("golden metadata `config` is not readable: {error}")))
    }

    /// Refuses shapes that the file cannot be about, before memory is taken for them: it holds all weights several times,
    /// a tensor or more of each block, and the images.
    fn check_shapes(&self) -> Result<(), ModelError> {
        let c = &self.config;
        let num_values: usize = self.tensors.values().map(|tensor| tensor.values.len()).sum();
        let grid = c.image.checked_div(c.patch).unwrap_or(0);
        let bounds: [(&str, &[usize], usize); 11] = [
            ("image", &[c.image], limits::IMAGE),
            ("depth", &[c.depth], self.tensors.len()),
            ("dec_depth", &[c.dec_depth], self.tensors.len()),
            ("the images", &[c.batch, c.channels, c.image, c.image], num_values),
            ("the encoder", &[c.depth.max(1), c.dim, c.dim], num_values),
            ("the decoder", &[c.dec_depth.max(1), c.dec_dim, c.dec_dim], num_values),
            ("the patch embedding", &[c.channels, c.patch, c.patch, c.dim.max(c.dec_dim)], num_values),
            ("the positions", &[grid, grid, c.dim.max(c.dec_dim)], num_values),
            ("the masking network", &[grid, grid, c.dim, c.mask_hidden], num_values),
            ("the head", &[c.classes, c.dim.max(1)], num_values),
            ("the attention", &[c.batch, c.heads.max(c.dec_heads), grid * grid, grid * grid], limits::ATTENTION),
        ];
        for (name, factors, limit) in bounds {
            let product = factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor));
            if product.is_none_or(|product| product > limit) {
                let line =
                    format!("golden metadata `config` does not fit the file: {name} {factors:?} is above {limit}");
                return Err(ModelError::Config(line));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&GoldenTensor, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::Tensor { name: name.into(), problem: "missing from the golden file".into() })
    }

    fn values(&self, name: &str, len: usize) -> Result<&[f32], ModelError> {
        let tensor = self.get(name)?;
        if tensor.values.len() == len {
            Ok(&tensor.values)
        } else {
            let problem = format!("must hold {len} values, got {} in shape {:?}", tensor.values.len(), tensor.shape);
            Err(ModelError::Tensor { name: name.into(), problem })
        }
    }

    fn params(&self, prefix: &str, layout: &Layout) -> Result<Params, ModelError> {
        let mut values = vec![0.0; layout.len];
        for entry in &layout.entries {
            values[entry.range()].copy_from_slice(self.values(&format!("{prefix}.{}", entry.name), entry.len)?);
        }
        Ok(Arc::new(Buffer::from_vec(values)))
    }

    fn labels(&self, name: &str, classes: usize) -> Result<Vec<i32>, ModelError> {
        let labels = self.values(name, self.config.batch)?;
        if let Some(bad) = labels.iter().find(|&&y| y < 0.0 || y as usize >= classes) {
            return Err(ModelError::Tensor {
                name: name.into(),
                problem: format!("labels must be below {classes}, got {bad}"),
            });
        }
        Ok(labels.iter().map(|&y| y as i32).collect())
    }

    /// Runs one outer iteration with `num_threads` and compares everything that the file expects.
    ///
    /// # Errors
    /// When the file lacks a tensor or its shapes do not fit.
    pub fn verify(&self, num_threads: usize) -> Result<Vec<Check>, ModelError> {
        self.check_shapes()?;
        let c = &self.config;
        let model = Model::new(&ModelConfig {
            image: c.image,
            patch: c.patch,
            channels: c.channels,
            dim: c.dim,
            depth: c.depth,
            heads: c.heads,
            dec_dim: c.dec_dim,
            dec_depth: c.dec_depth,
            dec_heads: c.dec_heads,
            pos_embed: PosEmbed::Trained,
            mask_ratio: c.mask_ratio,
            mask_net: MaskNetKind::FlatMlp,
            mask_input: MaskInput::Embedding,
            mask_hidden: c.mask_hidden,
            num_classes: c.classes,
        })?;
        // Two micro-batches, so that reduction is part of what is verified.
        let compute = Compute::new(num_threads, c.batch.div_ceil(2), Arena::new())?;
        let adamw = AdamWConfig { weight_decay: c.weight_decay, ..AdamWConfig::default() };
        let optimizer = |set| AdamW::new(adamw, model.layout(set));
        let mut theta = self.params("init.pretrain", model.layout(ParamSet::Pretrain))?;
        let head = self.params("init.finetune", model.layout(ParamSet::Head))?;
        let phi = self.params("init.mask", model.layout(ParamSet::Mask))?;
        let mut report = Report { golden: self, checks: Vec::new() };
        let masker = Masker::by_score();
        let image_values = c.batch * model.config.image_values();

        let mut pretrain_optimizer = optimizer(ParamSet::Pretrain);
        let mut num_steps = 0;
        let mut last = None;
        while self.tensors.contains_key(&format!("batch.pretrain{num_steps}.x")) {
            let name = format!("pretrain{num_steps}");
            let x = self.values(&format!("batch.{name}.x"), image_values)?;
            let scored = score(&compute, &model, &theta, &phi, x, &masker);
            let step = pretrain::gradient(&compute, &model, &theta, &phi, x, &scored)?;
            report.scalar(&format!("{name}.loss"), step.loss)?;
            report.values(&format!("{name}.scores"), scored.weights().unwrap_or_default(), limits::VALUE)?;
            let mask: Vec<f32> =
                (0..scored.order.rank.len()).map(|i| f32::from(u8::from(scored.order.is_masked(i)))).collect();
            report.values(&format!("{name}.mask"), &mask, 0.0)?;
            report.values(&format!("{name}.patch_loss"), &step.patch_loss, limits::VALUE)?;
            report.set(&format!("{name}.grad"), model.layout(ParamSet::Pretrain), &step.gradient, limits::GRADIENT)?;
            theta = pretrain_optimizer.update(&compute, &theta, &step.gradient, c.lr);
            last = Some(x);
            num_steps += 1;
        }
        let x_p = last.ok_or_else(|| ModelError::Tensor {
            name: "batch.pretrain0.x".into(),
            problem: "missing from the golden file".into(),
        })?;
        report.whole("after.pretrain", model.layout(ParamSet::Pretrain), &theta, limits::GRADIENT)?;

        let (y_f, y_v) = (self.labels("batch.finetune.y", c.classes)?, self.labels("batch.mask.y", c.classes)?);
        let finetune = Labelled { images: self.values("batch.finetune.x", image_values)?, labels: &y_f };
        let validation = Labelled { images: self.values("batch.mask.x", image_values)?, labels: &y_v };
        let narrow = |g: &[f64]| g.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let step = |c0: &Params, g: &[f64]| optimizer(ParamSet::Head).update(&compute, c0, &narrow(g), c.lr);

        let clean = evaluate_clean(&compute, &model, &theta, &head, finetune, validation, c.alpha, None, step)?;
        report.scalar("finetune.loss", clean.finetune_loss)?;
        report.set(
            "finetune.grad",
            model.layout(ParamSet::Head),
            &narrow(&clean.finetune_gradient),
            limits::GRADIENT,
        )?;
        report.whole("after.finetune", model.layout(ParamSet::Head), &clean.head, limits::GRADIENT)?;
        report.scalar("mask.loss", clean.validation_loss)?;
        report.set("mask.v_head", model.layout(ParamSet::Head), &narrow(&clean.v0), limits::GRADIENT)?;
        report.set("mask.v_encoder", model.layout(ParamSet::Pretrain), &clean.w, limits::GRADIENT)?;
        report.set("mask.indirect", model.layout(ParamSet::Pretrain), &clean.v1, limits::GRADIENT)?;

        let along = |v: &[f32]| hypergradient::along(&compute, &model, &theta, v, &phi, x_p, &masker, c.alpha);
        let mask_layout = model.layout(ParamSet::Mask);
        let summed = along(&clean.direction(&compute));
        report.set("mask.hypergrad", mask_layout, &summed, limits::FINITE_DIFFERENCE)?;
        report.rename_last("mask.hypergrad (clean)");
        report.set("mask.hypergrad_exact", mask_layout, &summed, limits::FINITE_DIFFERENCE)?;

        let published =
            evaluate_published(&compute, &model, &theta, &head, finetune, validation, c.alpha, |_| None, step)?;
        report.set("mask.indirect", model.layout(ParamSet::Pretrain), &published.v1, limits::GRADIENT)?;
        report.rename_last("mask.indirect (published)");
        let direct = along(&published.w);
        let indirect = along(&published.v1);
        report.set("mask.hypergrad_direct", mask_layout, &direct, limits::FINITE_DIFFERENCE)?;
        report.set("mask.hypergrad_indirect", mask_layout, &indirect, limits::FINITE_DIFFERENCE)?;
        let both: Vec<f32> = direct.iter().zip(indirect.iter()).map(|(a, b)| a + b).collect();
        report.set("mask.hypergrad", mask_layout, &both, limits::FINITE_DIFFERENCE)?;
        report.rename_last("mask.hypergrad (published)");
        let phi = optimizer(ParamSet::Mask).update(&compute, &phi, &summed, c.lr);
        report.whole("after.mask", mask_layout, &phi, limits::FINITE_DIFFERENCE)?;
        Ok(report.checks)
    }
}

struct Report<'a> {
    golden: &'a Golden,
    checks: Vec<Check>,
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

impl Report<'_> {
    fn push(&mut self, quantity: String, error: f64, limit: f64) {
        self.checks.push(Check { quantity, error, limit, ok: error <= limit });
    }

    fn rename_last(&mut self, name: &str) {
        if let Some(check) = self.checks.last_mut() {
            let worst = check.quantity.split_once(' ').map(|(_, worst)| worst.to_owned());
            check.quantity = worst.map_or_else(|| name.to_owned(), |worst| format!("{name} {worst}"));
        }
    }

    fn scalar(&mut self, name: &str, ours: f64) -> Result<(), ModelError> {
        let expected = f64::from(self.golden.values(&format!("expect.{name}"), 1)?[0]);
        self.push(name.into(), ((ours - expected) / expected).abs(), limits::VALUE);
        Ok(())
    }

    fn values(&mut self, name: &str, ours: &[f32], limit: f64) -> Result<(), ModelError> {
        let expected = self.golden.values(&format!("expect.{name}"), ours.len())?;
        let errors = ours.iter().zip(expected).map(|(&a, &e)| {
            let (a, e) = (f64::from(a), f64::from(e));
            if a == e { 0.0 } else { (a - e).abs() / e.abs().max(1e-30) }
        });
        // `f64::max` would drop a NaN, which must fail.
        let worse = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        let error = errors.fold(0.0, worse);
        self.push(name.into(), error, limit);
        Ok(())
    }

    fn expected(&self, name: &str, layout: &Layout) -> Result<Vec<f32>, ModelError> {
        let mut expected = vec![0.0; layout.len];
        for entry in &layout.entries {
            let full = format!("expect.{name}.{}", entry.name);
            expected[entry.range()].copy_from_slice(self.golden.values(&full, entry.len)?);
        }
        Ok(expected)
    }

    /// Compares a flat vector as one, relative in norm. Weights after AdamW need this: its first steps divide the gradient by its own
    /// size, so where the true gradient is zero (the bias of the keys) rounding decides the sign of a whole step.
    fn whole(&mut self, name: &str, layout: &Layout, ours: &[f32], limit: f64) -> Result<(), ModelError> {
        let expected = self.expected(name, layout)?;
        let difference: Vec<f32> = ours.iter().zip(&expected).map(|(a, e)| a - e).collect();
        self.push(name.into(), norm(&difference) / norm(&expected), limit);
        Ok(())
    }

    /// Compares a flat vector tensor by tensor, relative in norm; a tensor that is all but zero is measured against the whole set.
    fn set(&mut self, name: &str, layout: &Layout, ours: &[f32], limit: f64) -> Result<(), ModelError> {
        let expected = self.expected(name, layout)?;
        let floor = 1e-3 * norm(&expected);
        let mut worst = (0.0, "");
        for entry in &layout.entries {
            let (a, e) = (&ours[entry.range()], &expected[entry.range()]);
            let difference: Vec<f32> = a.iter().zip(e).map(|(a, e)| a - e).collect();
            let error = norm(&difference) / norm(e).max(floor).max(f64::MIN_POSITIVE);
            if error > worst.0 || error.is_nan() {
                worst = (error, &entry.name);
            }
        }
        let quantity = if worst.1.is_empty() { name.to_owned() } else { format!("{name} [{}]", worst.1) };
        self.push(quantity, worst.0, limit);
        Ok(())
    }
}
