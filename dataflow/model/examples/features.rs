//! Features and predictions for your own images from a checkpoint:
//! `cargo run --release -p mlomae-model --example features -- runs/quick image.raw …`
//!
//! An image is a file of bytes `[H, W, C]` of the model's size, without a header; without arguments, a grey image is
//! used.

use std::path::Path;

use mlomae_model::Model;
use mlomae_model::tasks::Predictions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let trained = Model::open(Path::new(&args.next().ok_or("usage: features RUN [IMAGE.raw ...]")?))?;
    let images: Vec<Vec<u8>> = args.map(std::fs::read).collect::<Result<_, _>>()?;
    let grey = vec![vec![127; trained.model.config.image_values()]];
    for pixels in if images.is_empty() { &grey } else { &images } {
        let image = trained.normalised(pixels)?;
        let features = trained.features(&image)?;
        let said = match trained.predict(&image)? {
            Predictions::Scores { values, .. } => {
                let best = (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap_or(0);
                trained.class_names[best].clone()
            }
            other => other.kind().to_owned(),
        };
        println!("{} features, begin with {:.3?}: {said}", features.len(), &features[..4]);
    }
    Ok(())
}
