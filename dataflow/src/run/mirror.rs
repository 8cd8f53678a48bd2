//! A device for tests: the CPU with a memory of its own. Whoever reads one of its vectors without downloading it, or
//! passes one that was not uploaded, fails. Results are the CPU's to the bit.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use mlomae_model::choice::Named;
use mlomae_model::golden::{Golden, GoldenTensor, How, Lap};
use mlomae_model::lane::cpu::Cpus;
use mlomae_model::lane::{
    Device, Direction, Downstream, FinetuneGradient, LabelledImages, Lane, LaneSize, Lanes, LanesSpec,
    PretrainGradient, Recording, Upstream,
};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::masking::{MaskRule, Scored};
use mlomae_model::tap::Tap;
use mlomae_model::tasks::{Noise, TapCotangents, Task};
use mlomae_model::vector::DeviceMemory;
use mlomae_model::{Arena, Buffer, Model, ModelError, Params, Precision, Vector};

/// Memory behind the wall.
#[derive(Debug)]
struct Mirrored(Params);

impl DeviceMemory for Mirrored {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn download(&self) -> Result<Buffer, ModelError> {
        Ok(Buffer::from_vec(self.0.to_vec()))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A vector behind the wall, as the CPU's lane reads it.
fn inside(vector: &Vector) -> Result<Vector, ModelError> {
    let outside = || ModelError::Lane { lane: "mirror", problem: "a vector was not uploaded".to_owned() };
    vector.device::<Mirrored>().map(|memory| memory.0.clone().into()).ok_or_else(outside)
}

/// A result of the CPU's lane, put behind the wall.
fn behind(vector: &Vector) -> Result<Vector, ModelError> {
    Ok(Vector::of_device(Arc::new(Mirrored(vector.to_host()?))))
}

/// The vectors of [`Downstream`] as the CPU's lane reads them.
struct Inside<'a> {
    theta: Vector,
    c: Vector,
    images: [Vector; 2],
    of: Downstream<'a>,
}

impl<'a> Inside<'a> {
    fn of(at: &Downstream<'a>) -> Result<Self, ModelError> {
        let images = [inside(at.finetune.images)?, inside(at.validation.images)?];
        Ok(Inside { theta: inside(at.theta)?, c: inside(at.c)?, images, of: *at })
    }

    fn at(&self) -> Downstream<'_> {
        let [f, v] = &self.images;
        Downstream {
            theta: &self.theta,
            c: &self.c,
            finetune: LabelledImages { images: f, targets: self.of.finetune.targets },
            validation: LabelledImages { images: v, targets: self.of.validation.targets },
            bank: self.of.bank,
        }
    }
}

fn direction(of: Direction) -> Result<Direction, ModelError> {
    Ok(Direction { v1: behind(&of.v1)?, w: behind(&of.w)?, ..of })
}

/// A lane of the CPU behind the wall.
#[derive(Debug)]
struct MirrorLane {
    lane: Box<dyn Lane>,
    /// Passes and updates since the time was last asked for.
    num_calls: u64,
}

/// Nanoseconds that the clock of the device goes on with each pass or update.
pub(crate) const NS_A_CALL: u64 = 1_000;

impl MirrorLane {
    fn new(lane: Box<dyn Lane>) -> Self {
        MirrorLane { lane, num_calls: 0 }
    }

    /// The lane, for work that takes the device's time.
    fn work(&mut self) -> &mut dyn Lane {
        self.num_calls += 1;
        &mut *self.lane
    }
}

impl Lane for MirrorLane {
    fn model(&self) -> &Arc<Model> {
        self.lane.model()
    }

    fn fork(&self) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(MirrorLane::new(self.lane.fork()?)))
    }

    fn upload(&self, vector: &Vector) -> Result<Vector, ModelError> {
        if vector.device::<Mirrored>().is_some() { Ok(vector.clone()) } else { behind(vector) }
    }

    fn score(
        &mut self,
        theta: Option<&Vector>,
        phi: &Vector,
        images: &Vector,
        rule: &MaskRule,
    ) -> Result<Scored, ModelError> {
        let theta = theta.map(inside).transpose()?;
        self.work().score(theta.as_ref(), &inside(phi)?, &inside(images)?, rule)
    }

    fn pretrain(
        &mut self,
        theta: &Vector,
        phi: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<PretrainGradient, ModelError> {
        let g = self.work().pretrain(&inside(theta)?, &inside(phi)?, &inside(images)?, scored)?;
        Ok(PretrainGradient { gradient: behind(&g.gradient)?, patch_loss: behind(&g.patch_loss)?, ..g })
    }

    fn finetune(
        &mut self,
        at: &Downstream<'_>,
        noise: Option<Noise>,
        keep: bool,
    ) -> Result<FinetuneGradient, ModelError> {
        let g = self.work().finetune(&Inside::of(at)?.at(), noise, keep)?;
        Ok(FinetuneGradient { gradient: behind(&g.gradient)?, ..g })
    }

    fn direction(&mut self, at: &Downstream<'_>, recorded: Recording, alpha: f64) -> Result<Direction, ModelError> {
        direction(self.work().direction(&Inside::of(at)?.at(), recorded, alpha)?)
    }

    fn direction_published(
        &mut self,
        at: &Downstream<'_>,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        direction(self.work().direction_published(&Inside::of(at)?.at(), alpha, noise)?)
    }

    fn pull_back(
        &mut self,
        at: &Downstream<'_>,
        recorded: Recording,
        cotangents: &mut TapCotangents<'_>,
    ) -> Result<[Vector; 2], ModelError> {
        let [v1, w] = self.work().pull_back(&Inside::of(at)?.at(), recorded, cotangents)?;
        Ok([behind(&v1)?, behind(&w)?])
    }

    fn preconditioned(&mut self, x: &Vector, v: &Vector, step: u64, adamw: &AdamWConfig) -> Result<Vector, ModelError> {
        behind(&self.lane.preconditioned(&inside(x)?, &inside(v)?, step, adamw)?)
    }

    fn patch_loss_tangents(
        &mut self,
        theta: &Vector,
        v: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<Vec<f32>, ModelError> {
        self.work().patch_loss_tangents(&inside(theta)?, &inside(v)?, &inside(images)?, scored)
    }

    fn mask_gradient(&mut self, phi: &Vector, scored: &Scored, dscores: &[f32]) -> Result<Vector, ModelError> {
        behind(&self.work().mask_gradient(&inside(phi)?, scored, dscores)?)
    }

    fn difference(&mut self, at: &Upstream<'_>, v: &Vector, alpha: f64) -> Result<Vector, ModelError> {
        let (theta, phi, images) = (&inside(at.theta)?, &inside(at.phi)?, &inside(at.images)?);
        behind(&self.work().difference(&Upstream { theta, phi, images, ..*at }, &inside(v)?, alpha)?)
    }

    fn tangent(&mut self, at: &Upstream<'_>, v: &Vector) -> Result<Vector, ModelError> {
        let (theta, phi, images) = (&inside(at.theta)?, &inside(at.phi)?, &inside(at.images)?);
        behind(&self.work().tangent(&Upstream { theta, phi, images, ..*at }, &inside(v)?)?)
    }

    fn update(
        &mut self,
        adamw: &mut AdamW,
        values: &Vector,
        gradient: &Vector,
        rate: f64,
    ) -> Result<Vector, ModelError> {
        let mut of_cpu = adamw.clone().with_moments(inside(&adamw.m)?, inside(&adamw.v)?);
        let next = self.work().update(&mut of_cpu, &inside(values)?, &inside(gradient)?, rate)?;
        let (m, v) = (behind(&of_cpu.m)?, behind(&of_cpu.v)?);
        *adamw = of_cpu.with_moments(m, v);
        behind(&next)
    }

    fn patch_losses(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vector, ModelError> {
        behind(&self.lane.patch_losses(&inside(theta)?, &inside(images)?, scored)?)
    }

    fn reconstruct(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vec<f32>, ModelError> {
        self.lane.reconstruct(&inside(theta)?, &inside(images)?, scored)
    }

    fn features(&mut self, theta: &Vector, images: &Vector) -> Result<Vec<f32>, ModelError> {
        self.lane.features(&inside(theta)?, &inside(images)?)
    }

    fn read_taps(&mut self, theta: &Vector, images: &Vector, taps: &[Tap]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.lane.read_taps(&inside(theta)?, &inside(images)?, taps)
    }

    fn set_task(&mut self, task: &Arc<dyn Task>) {
        self.lane.set_task(task);
    }

    fn shifted(&mut self, theta: &Vector, v: &Vector, epsilon: f64) -> Result<Vector, ModelError> {
        behind(&self.lane.shifted(&inside(theta)?, &inside(v)?, epsilon)?)
    }

    fn combined(&mut self, a: f64, x: &Vector, b: f64, y: &Vector) -> Result<Vector, ModelError> {
        behind(&self.lane.combined(a, &inside(x)?, b, &inside(y)?)?)
    }

    fn sum(&mut self, x: &Vector, y: &Vector) -> Result<Vector, ModelError> {
        behind(&self.lane.sum(&inside(x)?, &inside(y)?)?)
    }

    fn norm(&mut self, x: &Vector) -> Result<f64, ModelError> {
        self.lane.norm(&inside(x)?)
    }

    fn cosine(&mut self, x: &Vector, y: &Vector) -> Result<f64, ModelError> {
        self.lane.cosine(&inside(x)?, &inside(y)?)
    }

    fn values(&mut self, x: &Vector, range: Range<usize>) -> Result<Vec<f32>, ModelError> {
        self.lane.values(&inside(x)?, range)
    }

    fn first_non_finite(&mut self, x: &Vector) -> Result<Option<(usize, f32)>, ModelError> {
        self.lane.first_non_finite(&inside(x)?)
    }

    fn device_ns(&mut self) -> Option<u64> {
        Some(NS_A_CALL * std::mem::take(&mut self.num_calls))
    }

    fn allocated_bytes(&self) -> u64 {
        self.lane.allocated_bytes()
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct Mirror;

impl Named for Mirror {
    fn name(&self) -> &'static str {
        "mirror"
    }
    fn summary(&self) -> &'static str {
        "The processor with vectors in a memory of its own"
    }
}

impl Device for Mirror {
    fn problem(&self) -> Option<String> {
        None
    }

    fn refuses(&self, precision: Precision) -> Option<String> {
        Cpus.refuses(precision)
    }

    /// Their values are computed on their way in.
    fn takes_raw_images(&self) -> bool {
        true
    }

    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError> {
        let Lanes { score, pretrain, finetune, mask } = Cpus.lanes(spec)?;
        let mirror = |lane| -> Box<dyn Lane> { Box::new(MirrorLane::new(lane)) };
        Ok(Lanes { score: mirror(score), pretrain: mirror(pretrain), finetune: mirror(finetune), mask: mirror(mask) })
    }

    fn lane(
        &self,
        model: &Arc<Model>,
        arena: &Arena,
        grain: usize,
        precision: Precision,
        size: LaneSize,
    ) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(MirrorLane::new(Cpus.lane(model, arena, grain, precision, size)?)))
    }
}

#[test]
fn the_golden_file_holds_on_a_device_with_a_memory_of_its_own() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/tiny.safetensors");
    let (metadata, tensors) = mlomae_storage::checkpoint::read_safetensors(&path).expect("readable");
    let config = Golden::parse_config(&metadata["config"]).expect("a golden file");
    let tensors = tensors.into_iter().map(|tensor| {
        let values = tensor.data.to_f64().into_iter().map(|value| value as f32).collect();
        (tensor.name, GoldenTensor { shape: tensor.shape, values })
    });
    let golden = Golden { config, tensors: tensors.collect() };
    let checks = |device: &dyn Device| -> Vec<(String, u64)> {
        let checks = golden.verify_on(device, 2, How::default()).expect("whole");
        assert!(checks.iter().all(|check| check.ok), "{checks:?}");
        checks.into_iter().map(|check| (check.quantity, check.error.to_bits())).collect()
    };
    assert_eq!(checks(&Cpus), checks(&Mirror));
    let mut laps = [Vec::new(), Vec::new()];
    for (device, laps) in [&Cpus as &dyn Device, &Mirror].into_iter().zip(&mut laps) {
        let mut see = |lap: &Lap| {
            laps.push(lap.clone());
            true
        };
        golden.trajectory(device, 2, How::default(), 2, &mut see).expect("whole");
    }
    assert!(laps[0].len() == 2 && laps[0] == laps[1], "{laps:?}");
}
