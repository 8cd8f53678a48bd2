//! `mlomae data`: look at datasets, convert them, generate one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlomae_storage::dataset::{
    self, ConvertReport, DataError, Dataset, DatasetSpec, FORMATS, FormatName, NameSource, ObjectAreas, Split,
    SyntheticLabel, SyntheticScene, SyntheticSpec,
};
use mlomae_storage::escape::{one_line, shortened};

use super::bar::Bar;
use super::session::Session;
use crate::process::error::CliError;

/// Characters of a class's name that are printed; a text of a megabyte may be one, and no column is so wide.
const MAX_NAME: usize = 120;

/// The formats and some examples, for the end of the help.
fn after_help() -> String {
    let mut help =
        "Formats, recognised from the files unless --format is given; generated and embedded data needs no PATH:\n"
            .to_owned();
    for format in FORMATS {
        help.push_str(&format!("  {:<14}{}\n", format.name(), format.about().trim_end_matches('.')));
    }
    help.push_str(
        "\nExamples:
  mlomae data info --format embedded
  mlomae data info /data/cifar-100-python --label-column fine_label
  mlomae data convert /data/cifar-10-batches-bin data/cifar10
  mlomae data synthetic data/shapes --num-train 10000 --image 64",
    );
    help
}

/// Look at a dataset, convert it to Parquet, or generate one
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the splits, classes, sizes and pixel statistics; decodes every image
    Info(InfoArgs),
    /// Write a dataset as Hugging Face Parquet with PNG images, losslessly
    Convert(ConvertArgs),
    /// Write the synthetic dataset (textured backgrounds, one shaped object, label by shape or place) as Parquet
    Synthetic(SyntheticArgs),
}

#[derive(Debug, clap::Args)]
struct SourceArgs {
    /// How the files are stored
    #[arg(long, default_value = "auto", value_name = "FORMAT", value_parser = parse_format)]
    format: FormatName,
    /// Label column where there are several
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Image column of a Parquet file where there are several
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Leaves out a split, folder or file by its name, or by a pattern of its path below PATH
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Only this split
    #[arg(long, value_name = "train|test|validation", value_parser = parse_split)]
    split: Option<Split>,
}

#[derive(Debug, clap::Args)]
struct InfoArgs {
    /// File or folder of the dataset
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// File or folder of the dataset; none for --format embedded
    #[arg(value_name = "PATH", required_unless_present = "format")]
    path: Option<PathBuf>,
    /// Folder for the Parquet files, one for each split
    #[arg(value_name = "OUT_DIR")]
    out_dir: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Debug, clap::Args)]
struct SyntheticArgs {
    /// Folder for the Parquet files
    #[arg(value_name = "OUT_DIR")]
    out_dir: PathBuf,
    /// Images of the training split
    #[arg(long, default_value_t = SyntheticSpec::default().num_train)]
    num_train: usize,
    /// Images of the test split
    #[arg(long, default_value_t = SyntheticSpec::default().num_test)]
    num_test: usize,
    /// Side of the square images, in pixels
    #[arg(long, default_value_t = SyntheticSpec::default().image)]
    image: usize,
    /// 1 (grey) or 3 (RGB)
    #[arg(long, default_value_t = SyntheticSpec::default().channels)]
    channels: usize,
    /// Number of shapes
    #[arg(long, default_value_t = SyntheticSpec::default().num_classes)]
    num_classes: usize,
    /// What the label is of: the object's shape (object), or the cell of a grid in which it lies (place)
    #[arg(long, default_value = SyntheticLabel::default().as_str(), value_parser = parse_label)]
    label: SyntheticLabel,
    /// With --label place: cells of the grid along either axis, 2 or 3
    #[arg(long, default_value_t = SyntheticSpec::default().place_grid)]
    place_grid: usize,
    /// Seed of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the images show: shapes, or voronoi (one small red object on a background of high variance)
    #[arg(long, default_value = SyntheticScene::default().as_str(), value_parser = parse_scene)]
    scene: SyntheticScene,
    /// Scene voronoi: whether areas differ by-shape or are equal
    #[arg(long, default_value = ObjectAreas::default().as_str(), value_parser = parse_areas)]
    areas: ObjectAreas,
    /// Scene voronoi: blue and green objects that say nothing
    #[arg(long, default_value_t = SyntheticSpec::default().num_distractors)]
    num_distractors: usize,
}

fn parse_scene(text: &str) -> Result<SyntheticScene, String> {
    let scene = SyntheticScene::ALL.into_iter().find(|scene| scene.as_str() == text);
    scene.ok_or_else(|| format!("allowed: {}", SyntheticScene::ALL.map(SyntheticScene::as_str).join(", ")))
}

fn parse_label(text: &str) -> Result<SyntheticLabel, String> {
    let label = SyntheticLabel::ALL.into_iter().find(|label| label.as_str() == text);
    label.ok_or_else(|| format!("allowed: {}", SyntheticLabel::ALL.map(SyntheticLabel::as_str).join(", ")))
}

fn parse_areas(text: &str) -> Result<ObjectAreas, String> {
    let areas = ObjectAreas::ALL.into_iter().find(|areas| areas.as_str() == text);
    areas.ok_or_else(|| format!("allowed: {}", ObjectAreas::ALL.map(ObjectAreas::as_str).join(", ")))
}

fn parse_format(text: &str) -> Result<FormatName, String> {
    FormatName::parse(text).map_err(|error| error.to_string())
}

fn parse_split(text: &str) -> Result<Split, String> {
    Split::parse(text).map_err(|error| error.to_string())
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        match self.command {
            Command::Info(args) => info(&args, session),
            Command::Convert(args) => convert(&args, session),
            Command::Synthetic(args) => synthetic(&args, session),
        }
    }
}

impl SourceArgs {
    /// The requested splits, or all that there are, the train split first.
    fn open(&self, path: Option<&Path>) -> Result<Vec<Arc<dyn Dataset>>, CliError> {
        let open = |split, label_column: Option<&String>| {
            dataset::open(&DatasetSpec {
                format: self.format,
                path: path.map(Path::to_owned),
                split,
                label_column: self.label_column.as_ref().or(label_column).cloned(),
                label_column_optional: label_column.is_some(),
                image_column: self.image_column.clone(),
                exclude: self.exclude.clone(),
                ..DatasetSpec::default()
            })
        };
        if let Some(split) = self.split {
            return Ok(vec![open(split, None)?]);
        }
        let (mut splits, mut absent): (Vec<Arc<dyn Dataset>>, _) = (Vec::new(), None);
        for split in [Split::Train, Split::Test, Split::Validation] {
            let column = splits.first().and_then(|train| train.info().label_column.clone());
            match open(split, column.as_ref()) {
                // The validation split may have stood in for a test split.
                Ok(found) if splits.iter().any(|known| known.info().split == found.info().split) => {}
                Ok(found) => splits.push(found),
                Err(error @ DataError::NoSplit { .. }) => absent = absent.or(Some(error)),
                Err(error) => return Err(error.into()),
            }
        }
        match absent {
            Some(error) if splits.is_empty() => Err(error.into()),
            _ => Ok(splits),
        }
    }

    fn needs_path(&self) -> bool {
        self.format.reads_files()
    }
}

/// A split, and what is to be said of it.
type Noted = (Arc<dyn Dataset>, Vec<String>);

/// The labels of all splits in the first one's classes; a split that cannot be mapped stays as it is, with a note that
/// says why.
fn in_classes_of_first(splits: Vec<Arc<dyn Dataset>>) -> Result<Vec<Noted>, CliError> {
    let Some(train) = splits.first().cloned() else { return Ok(Vec::new()) };
    let labels = (0..train.len()).map(|index| train.label(index)).collect::<Result<Vec<_>, _>>()?;
    let mut mapped = vec![(train.clone(), Vec::new())];
    for split in splits.into_iter().skip(1) {
        mapped.push(match dataset::align(split.clone(), train.as_ref(), &labels) {
            Ok(aligned) => (aligned.dataset, aligned.notes),
            Err(error @ DataError::Classes { .. }) => (split, vec![error.to_string()]),
            Err(error) => return Err(error.into()),
        });
    }
    Ok(mapped)
}

fn info(args: &InfoArgs, session: &mut Session<'_>) -> Result<(), CliError> {
    if args.path.is_none() && args.source.needs_path() {
        let others: Vec<_> = dataset::reading_no_files().into_iter().map(FormatName::as_str).collect();
        return Err(CliError::usage(format!("data info needs a PATH, or --format {}", others.join(" or "))));
    }
    let splits = in_classes_of_first(args.source.open(args.path.as_deref())?)?;
    let mut report = Vec::new();
    for (number, (split, notes)) in splits.iter().enumerate() {
        let (info, summary) = (split.info(), dataset::summary(split.as_ref())?);
        let notes: Vec<String> = split.notes().into_iter().chain(notes.iter().cloned()).collect();
        let label_type = split.label_origin().column_type;
        if args.json {
            let classes: Vec<_> = summary
                .classes
                .iter()
                .map(|(name, num_samples)| serde_json::json!({"name": name, "num_samples": num_samples}))
                .collect();
            report.push(serde_json::json!({
                "name": info.name,
                "format": info.format,
                "split": info.split,
                "num_samples": summary.num_samples,
                "num_unlabelled": summary.num_unlabelled,
                "label_column": info.label_column,
                "label_type": label_type,
                "min_size": [summary.min_size.0, summary.min_size.1],
                "max_size": [summary.max_size.0, summary.max_size.1],
                "channels": summary.channels,
                "mean": summary.mean,
                "std": summary.std,
                "classes": classes,
                "notes": notes,
            }));
            continue;
        }
        if number > 0 {
            writeln!(session.out)?;
        }
        let size = |(width, height): (usize, usize)| format!("{width} x {height}");
        let sizes = if summary.min_size == summary.max_size {
            size(summary.min_size)
        } else {
            format!("{} to {}", size(summary.min_size), size(summary.max_size))
        };
        let values = |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ");
        let kind = if summary.channels == 1 { "grey" } else { "RGB" };
        writeln!(session.out, "{} ({}), {} split", one_line(&info.name), info.format, info.split)?;
        writeln!(session.out, "  images   {}", summary.num_samples)?;
        writeln!(session.out, "  pixels   {sizes}, {kind}")?;
        writeln!(session.out, "  mean     {}", values(&summary.mean))?;
        writeln!(session.out, "  std      {}", values(&summary.std))?;
        let num_classes = summary.classes.len();
        match (&info.label_column, label_type) {
            (Some(column), Some(kind)) => {
                writeln!(session.out, "  labels   {} ({kind}), {num_classes} classes", one_line(column))?;
            }
            (Some(column), None) => writeln!(session.out, "  labels   {column}, {num_classes} classes")?,
            (None, _) if num_classes > 0 => writeln!(session.out, "  labels   {num_classes} classes")?,
            (None, _) => writeln!(session.out, "  labels   none")?,
        }
        if summary.num_unlabelled > 0 {
            writeln!(session.out, "  without a label {}", summary.num_unlabelled)?;
        }
        for note in notes {
            writeln!(session.out, "  note     {}", one_line(&note))?;
        }
        let classes: Vec<_> = summary
            .classes
            .iter()
            .map(|(name, num)| (one_line(&shortened(name, MAX_NAME)).into_owned(), num))
            .collect();
        let width = classes.iter().map(|class| class.0.chars().count()).max().unwrap_or(0);
        for (label, (name, num_samples)) in classes.iter().enumerate() {
            writeln!(session.out, "    {label:>4}  {name:<width$}  {num_samples}")?;
        }
    }
    if args.json {
        writeln!(session.out, "{:#}", serde_json::json!({ "splits": report }))?;
    }
    Ok(())
}

fn convert(args: &ConvertArgs, session: &mut Session<'_>) -> Result<(), CliError> {
    // A dataset without a path leaves the only place to the folder.
    let (path, out_dir) = match (&args.path, &args.out_dir, args.source.needs_path()) {
        (Some(path), Some(out_dir), true) => (Some(path.as_path()), out_dir),
        (Some(out_dir), None, false) => (None, out_dir),
        (_, _, true) => return Err(CliError::usage("data convert needs a PATH and an OUT_DIR")),
        (_, _, false) => {
            let line = format!("data convert --format {} needs an OUT_DIR alone", args.source.format);
            return Err(CliError::usage(line));
        }
    };
    let mut reports = Vec::new();
    let splits = args.source.open(path)?;
    // Names that were gathered are the same in all files of the result; a list of the source is kept as it is.
    let is_kept = splits.iter().all(|split| {
        split.info().format == dataset::convert::FORMAT.as_str() && split.label_origin().names == NameSource::Declared
    });
    let splits =
        if is_kept { splits.into_iter().map(|s| (s, Vec::new())).collect() } else { in_classes_of_first(splits)? };
    for (split, notes) in splits {
        for note in split.notes().into_iter().chain(notes) {
            tracing::warn!(kind = "data_skipped", "{note}");
        }
        let bar = Bar::new(&session.terminal, "converting");
        let mut progress = |done, all| bar.set("converting", done, all);
        reports.push(dataset::convert(split.as_ref(), out_dir, &mut progress)?);
    }
    print_reports(&reports, session)
}

fn synthetic(args: &SyntheticArgs, session: &mut Session<'_>) -> Result<(), CliError> {
    let spec = SyntheticSpec {
        num_train: args.num_train,
        num_test: args.num_test,
        image: args.image,
        num_classes: args.num_classes,
        label: args.label,
        place_grid: args.place_grid,
        seed: args.seed,
        channels: args.channels,
        scene: args.scene,
        areas: args.areas,
        num_distractors: args.num_distractors,
        ..SyntheticSpec::default()
    };
    let bar = Bar::new(&session.terminal, "generating");
    let mut progress = |done, all| bar.set("generating", done, all);
    let reports = dataset::write_synthetic(&spec, &args.out_dir, &mut progress)?;
    drop(bar);
    print_reports(&reports, session)
}

fn print_reports(reports: &[ConvertReport], session: &mut Session<'_>) -> Result<(), CliError> {
    for ConvertReport { path, num_samples, num_unlabelled, label_column, num_bytes } in reports {
        let mib = *num_bytes as f64 / f64::from(1 << 20);
        let labels = match (label_column, num_unlabelled) {
            (None, _) => ", without labels".to_owned(),
            (Some(_), 0) => String::new(),
            (Some(_), num) => format!(", {num} of them without a label"),
        };
        let path = path.display().to_string();
        writeln!(session.out, "{}  {num_samples} images{labels}, {mib:.1} MiB", one_line(&path))?;
    }
    Ok(())
}
