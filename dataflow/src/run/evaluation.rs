//! Evaluations of a frozen encoder on the test role: k-nearest neighbours and a linear probe. Either gives the class of
//! every image, which [`accuracy`] sums up.

use mlomae_kernels::{Mat, matmul};
use mlomae_model::lane::Lane;
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig, Decay, Schedule};
use mlomae_model::levels::vectors::{narrow, widen};
use mlomae_model::rng::{Purpose, keyed, shuffle};
use mlomae_model::tasks::class::Classification;
use mlomae_model::tasks::{At, Share, Targets, Task, Tokens, Want};
use mlomae_model::{Compute, ModelError, Params, Vector};

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;
use crate::record::statistics::internal;
use crate::stages::load::LoadStage;

/// Features of labelled images.
#[derive(Debug, Clone, Default)]
pub struct Features {
    /// Width of a feature vector.
    pub dim: usize,
    /// `[images, dim]`.
    pub values: Vec<f32>,
    /// `[images]`.
    pub labels: Vec<i32>,
    /// Stable ids of the samples, `[images]`.
    pub ids: Vec<i64>,
}

impl Features {
    /// Images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }

    /// The images of `loader`'s split at `indices` through the encoder θ, without augmentation; unlabelled ones are
    /// left out. `progress` gets done and total after each batch.
    ///
    /// # Errors
    /// An unreadable sample.
    pub fn extract(
        lane: &mut dyn Lane,
        theta: &Vector,
        loader: &LoadStage,
        indices: &[usize],
        batch: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, StageError> {
        let failed = internal(StageName::Evaluator);
        let theta = lane.upload(theta).map_err(&failed)?;
        let mut all = Self { dim: lane.model().config.dim, ..Self::default() };
        for (done, chunk) in indices.chunks(batch.max(1)).enumerate() {
            let images = loader.samples(chunk)?;
            // All of them bad images that are passed over.
            if images.is_empty() {
                continue;
            }
            let z = lane.ingest(&images.images).and_then(|images| lane.features(&theta, &images)).map_err(&failed)?;
            for (image, row) in z.chunks_exact(all.dim).enumerate() {
                if let Some(label) = images.targets.class(image) {
                    all.values.extend_from_slice(row);
                    all.labels.push(label);
                    all.ids.push(images.ids[image]);
                }
            }
            progress((done * batch.max(1) + chunk.len()).min(indices.len()), indices.len());
        }
        Ok(all)
    }
}

fn unit_rows(features: &Features) -> Vec<f32> {
    let mut out = Vec::with_capacity(features.values.len());
    for row in features.rows() {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        out.extend(row.iter().map(|v| v / norm));
    }
    out
}

/// Queries whose similarities are computed in one product.
const QUERIES_AT_ONCE: usize = 64;

/// What is given for a class where there is nothing to learn from.
const NO_CLASS: i32 = -1;

/// Share of the images whose class is their label; 0 without images.
#[must_use]
pub fn accuracy(classes: &[i32], labels: &[i32]) -> f64 {
    let num_right = classes.iter().zip(labels).filter(|(class, label)| class == label).count();
    num_right as f64 / labels.len().max(1) as f64
}

/// The class of each image of `test` by weighted k-nearest neighbours by cosine similarity: each of the `k` nearest of
/// `bank` votes for its label with the weight exp(similarity / temperature). Ties go to the lower label. -1 without a
/// bank.
#[must_use]
pub fn knn_classes(
    compute: &Compute,
    bank: &Features,
    test: &Features,
    num_classes: usize,
    k: usize,
    temperature: f64,
) -> Vec<i32> {
    if bank.is_empty() || test.is_empty() {
        return vec![NO_CLASS; test.len()];
    }
    let (bank_rows, test_rows) = (unit_rows(bank), unit_rows(test));
    let (dim, num_bank) = (bank.dim, bank.len());
    let k = k.clamp(1, num_bank);
    let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let vote = |row: &[f32]| {
        let mut nearest: Vec<(f32, usize)> = row.iter().copied().zip(0..).collect();
        nearest.select_nth_unstable_by(k - 1, order);
        nearest.truncate(k);
        nearest.sort_by(order);
        let mut votes = vec![0.0; num_classes];
        for (similarity, index) in nearest {
            votes[bank.labels[index] as usize] += (f64::from(similarity) / temperature).exp();
        }
        (0..num_classes).fold(0, |best, class| if votes[class] > votes[best] { class } else { best })
    };
    let pieces: Vec<_> = test_rows.chunks(QUERIES_AT_ONCE * dim).collect();
    let classes = compute.map(pieces.len(), |piece| {
        let rows = pieces[piece];
        let num = rows.len() / dim;
        let mut similarities = vec![0.0; num * num_bank];
        let a = Mat { data: rows, ld: dim, trans: false };
        let b = Mat { data: &bank_rows, ld: dim, trans: true };
        matmul(&mut similarities, num_bank, a, b, num, num_bank, dim, false);
        similarities.chunks_exact(num_bank).map(|row| vote(row) as i32).collect::<Vec<i32>>()
    });
    classes.concat()
}

/// Settings of the linear probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearProbe {
    /// Passes over the bank.
    pub epochs: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Learning rate, which falls to 0 by a cosine.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Seed of initial weights and order.
    pub seed: u64,
}

/// The class of each image of `test` by a linear classifier (after the head's layer norm) that is trained on `bank`.
/// Features are standardised by the bank's mean and deviation first. -1 without a bank.
///
/// # Errors
/// When a label is not below `num_classes`.
pub fn linear_classes(
    bank: &Features,
    test: &Features,
    num_classes: usize,
    probe: &LinearProbe,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<i32>, ModelError> {
    if bank.is_empty() || test.is_empty() {
        return Ok(vec![NO_CLASS; test.len()]);
    }
    let (bank, test) = (&standardised(bank, bank), &standardised(bank, test));
    let task = Classification::new(bank.dim, num_classes);
    let compute = Compute::serial(1);
    let mut params: Params = std::sync::Arc::new(task.init(probe.seed));
    let constants = AdamWConfig { weight_decay: probe.weight_decay, beta2: 0.999, ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(constants, task.layout());
    let evaluate = |params: &Params, values: &[f32], labels: Vec<i32>, want| -> Result<Share, ModelError> {
        let z = [Tokens { per_image: 1, dim: bank.dim, values }];
        let y = Targets::Classes(labels.into());
        task.evaluate(&At { c: &widen(params), z: &z, y: &y, total: task.total(&y), noise: None }, want)
    };
    let per_epoch = bank.len().div_ceil(probe.batch);
    let total_steps = (probe.epochs * per_epoch) as u64;
    let schedule = Schedule { base: probe.lr, warmup_steps: 0, total_steps, decay: Decay::Cosine };
    for epoch in 0..probe.epochs {
        let mut order: Vec<usize> = (0..bank.len()).collect();
        shuffle(&mut order, &mut keyed(probe.seed, Purpose::Eval, epoch as u64, 0));
        for chunk in order.chunks(probe.batch) {
            let rows: Vec<f32> =
                chunk.iter().flat_map(|&i| bank.values[i * bank.dim..(i + 1) * bank.dim].iter().copied()).collect();
            let labels: Vec<i32> = chunk.iter().map(|&i| bank.labels[i]).collect();
            let share = evaluate(&params, &rows, labels, Want { dc: true, dz: false })?;
            let rate = schedule.rate(optimizer.step);
            params = optimizer.update(&compute, &params, &narrow(&share.dc), rate)?;
        }
        progress(epoch + 1, probe.epochs);
    }
    // Refuses labels of the test images that are no classes.
    evaluate(&params, &test.values, test.labels.clone(), Want::LOSS)?;
    Ok(task.classes(&widen(&params), &test.values))
}

/// `features` minus the mean of `bank`, over its deviation.
fn standardised(bank: &Features, features: &Features) -> Features {
    let n = bank.len() as f64;
    let mut mean = vec![0f64; bank.dim];
    let mut square = vec![0f64; bank.dim];
    for row in bank.rows() {
        for (i, &v) in row.iter().enumerate() {
            mean[i] += f64::from(v) / n;
            square[i] += f64::from(v).powi(2) / n;
        }
    }
    let scale: Vec<f64> = square.iter().zip(&mean).map(|(s, m)| 1.0 / (s - m * m).max(1e-12).sqrt()).collect();
    let standardise = |row: &[f32]| -> Vec<f32> {
        row.iter().enumerate().map(|(i, &v)| ((f64::from(v) - mean[i]) * scale[i]) as f32).collect()
    };
    Features { values: features.rows().flat_map(standardise).collect(), ..features.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_model::rng::uniform;

    /// Two noisy directions per class.
    fn clusters(num: usize, noise: f64, seed: u64) -> Features {
        let mut rng = keyed(seed, Purpose::Eval, 1, 1);
        let mut features = Features { dim: 6, ..Features::default() };
        for i in 0..num {
            let label = i % 3;
            features.labels.push(label as i32);
            features.values.extend(
                (0..6).map(|d| (f64::from(u8::from(d / 2 == label)) + noise * (uniform(&mut rng) - 0.5)) as f32),
            );
        }
        features
    }

    #[test]
    fn both_evaluations_tell_signal_from_noise() {
        let probe = LinearProbe { epochs: 20, batch: 32, lr: 1e-2, weight_decay: 0.0, seed: 1 };
        let (bank, test) = (clusters(300, 0.5, 1), clusters(90, 0.5, 2));
        let knn = |bank: &Features| accuracy(&knn_classes(&Compute::serial(1), bank, &test, 3, 5, 0.07), &test.labels);
        let linear =
            |bank: &Features| accuracy(&linear_classes(bank, &test, 3, &probe, &mut |_, _| {}).unwrap(), &test.labels);
        assert!(knn(&bank) > 0.98 && linear(&bank) > 0.98);
        let mut shuffled = bank;
        shuffle(&mut shuffled.labels, &mut keyed(3, Purpose::Eval, 0, 0));
        assert!(knn(&shuffled) < 0.6 && linear(&shuffled) < 0.7);
        let nothing = Features { dim: 6, ..Features::default() };
        assert_eq!((knn(&nothing), linear(&nothing)), (0.0, 0.0));
        let wrong = Features { labels: vec![3; 90], ..test.clone() };
        assert!(linear_classes(&shuffled, &wrong, 3, &probe, &mut |_, _| {}).is_err(), "a label that is no class");
    }

    #[test]
    fn classes_come_in_the_order_of_the_images_whatever_computes_them() {
        // More queries than are computed at once, and features that tell every class.
        let (bank, test) = (clusters(120, 0.1, 1), clusters(3 * QUERIES_AT_ONCE + 5, 0.1, 2));
        let compute = Compute::new(3, 2, mlomae_model::Arena::new()).unwrap();
        let classes = knn_classes(&compute, &bank, &test, 3, 5, 0.07);
        assert_eq!(classes, test.labels);
        assert_eq!(classes, knn_classes(&Compute::serial(1), &bank, &test, 3, 5, 0.07));
        assert_eq!(accuracy(&[0, 1, 2, 2], &[0, 1, 1, 2]), 0.75);
    }

    #[test]
    fn one_neighbour_is_the_nearest() {
        let bank = Features { dim: 2, values: vec![1.0, 0.0, 0.0, 1.0], labels: vec![0, 1], ids: vec![7, 8] };
        let test = Features { dim: 2, values: vec![5.0, 1.0, 0.1, 0.3], labels: vec![0, 1], ids: vec![7, 8] };
        assert_eq!(knn_classes(&Compute::serial(1), &bank, &test, 2, 1, 0.07), [0, 1]);
        assert_eq!(knn_classes(&Compute::serial(1), &bank, &test, 2, 100, 0.07), [0, 1]);
    }
}
