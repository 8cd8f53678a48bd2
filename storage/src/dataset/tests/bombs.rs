//! Parquet files that take far more memory than they have bytes.

use arrow::array::{
    Array, ArrayRef, BinaryArray, Int64Array, NullBufferBuilder, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

use super::super::convert::encode_png;
use super::*;

/// Rows of a file; at 1 MB each they would take 300 MB.
const NUM_ROWS: usize = 300;

fn zstd() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(9).unwrap()))
}

/// A PNG of about 1 MB.
fn large_png() -> Vec<u8> {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels = (0..600 * 600 * 3).map(|_| noise()).collect();
    encode_png(&Image { width: 600, height: 600, channels: 3, pixels }).unwrap()
}

/// Writes a train split whose images are `images`, a batch after the other, with labels 0 and 1 in turn.
fn write(folder: &Path, properties: WriterProperties, images: impl Iterator<Item = BinaryArray>) -> PathBuf {
    let path = folder.join("train.parquet");
    let parts =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let mut writer = None;
    for images in images {
        let rows = images.len();
        let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; rows]));
        let images = StructArray::new(parts.clone(), vec![Arc::new(images), paths], None);
        let labels = Int64Array::from_iter_values((0..rows as i64).map(|row| row % 2));
        let columns: [(&str, ArrayRef); 2] = [("image", Arc::new(images)), ("label", Arc::new(labels))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = || std::fs::File::create(&path).unwrap();
        let writer = writer
            .get_or_insert_with(|| ArrowWriter::try_new(file(), batch.schema(), Some(properties.clone())).unwrap());
        writer.write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
    path
}

/// The one image in all rows, some at a time.
fn repeated(image: &[u8]) -> impl Iterator<Item = BinaryArray> + '_ {
    (0..NUM_ROWS / 100).map(move |_| BinaryArray::from_iter_values(std::iter::repeat_n(image, 100)))
}

fn bounded(path: &Path, max_bytes: u64) -> DatasetSpec {
    DatasetSpec { max_resident_bytes: Some(max_bytes), ..spec(path, HfParquet::NAME, Split::Train) }
}

#[test]
fn an_image_that_a_dictionary_holds_once_takes_its_memory_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = large_png();
    let properties = zstd().set_dictionary_page_size_limit(16 << 20).build();
    let path = write(folder.path(), properties, repeated(&image));
    assert!(std::fs::metadata(&path).unwrap().len() < 2 << 20);
    let dataset = open(&bounded(&path, 16 << 20)).unwrap();
    assert_eq!((dataset.len(), dataset.info().image_size), (NUM_ROWS, Some((600, 600))));
    assert!(dataset.resident_bytes() < 16 << 20, "{}", dataset.resident_bytes());
    let sample = dataset.sample(NUM_ROWS - 1).unwrap();
    assert_eq!((sample.label, sample.image.pixels.len()), (Some(1), 600 * 600 * 3));
}

#[test]
fn a_page_that_unpacks_to_three_hundred_times_its_size_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let properties = zstd().set_dictionary_enabled(false).set_data_page_size_limit(1 << 30).build();
    let path = write(folder.path(), properties, repeated(&large_png()));
    assert!(std::fs::metadata(&path).unwrap().len() < 8 << 20);
    let error = open(&bounded(&path, 16 << 30)).err().unwrap();
    assert!(error.to_string().contains("image.bytes") && error.to_string().contains("unpacked"), "{error}");
    assert_eq!(error.exit_code(), 65);
}

#[test]
fn pages_of_nothing_are_added_up_before_they_are_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    // 32 MB of zeros a row, each in a page of its own: 640 MB in some kilobytes.
    let properties = zstd().set_dictionary_enabled(false).set_data_page_row_count_limit(1).set_write_batch_size(1);
    let images = (0..20).map(|_| BinaryArray::from_iter_values([vec![0; 32 << 20]]));
    let path = write(folder.path(), properties.build(), images);
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    let error = open(&bounded(&path, 256 << 20)).err().unwrap();
    assert!(matches!(error, DataError::Memory { needed, .. } if needed >= 640 << 20), "{error}");
    assert_eq!(error.exit_code(), 78);
}

#[test]
fn rows_of_nothing_are_counted_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    // Ten million rows without an image.
    let images = (0..100).map(|_| {
        let mut nulls = NullBufferBuilder::new(0);
        nulls.append_n_nulls(100_000);
        let offsets = arrow::buffer::OffsetBuffer::from_repeated_length(0, 100_000);
        BinaryArray::new(offsets, Vec::<u8>::new().into(), nulls.finish())
    });
    let path = write(folder.path(), zstd().build(), images);
    assert!(std::fs::metadata(&path).unwrap().len() < 8 << 20);
    let error = open(&bounded(&path, 64 << 20)).err().unwrap();
    assert!(matches!(error, DataError::Memory { .. }), "{error}");
}

#[test]
fn sparse_files_of_other_formats_are_refused_by_their_size() {
    let folder = tempfile::tempdir().unwrap();
    for batch in 1..=5 {
        let file = std::fs::File::create(folder.path().join(format!("data_batch_{batch}.bin"))).unwrap();
        file.set_len(3073 << 20).unwrap();
    }
    let spec = DatasetSpec { max_resident_bytes: Some(1 << 30), ..spec(folder.path(), CifarBin::NAME, Split::Train) };
    let error = open(&spec).err().unwrap();
    assert!(matches!(error, DataError::Memory { .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let header = [&[0, 0, 8, 3][..], &0x0400_0000_u32.to_be_bytes(), &28_u32.to_be_bytes(), &28_u32.to_be_bytes()];
    for (name, rank) in [("train-images-idx3-ubyte", 16), ("train-labels-idx1-ubyte", 8)] {
        std::fs::write(folder.path().join(name), &header.concat()[..rank]).unwrap();
    }
    let images = std::fs::OpenOptions::new().write(true).open(folder.path().join("train-images-idx3-ubyte")).unwrap();
    images.set_len(16 + 0x0400_0000 * 784).unwrap();
    let spec = DatasetSpec { format: Idx::NAME, path: Some(folder.path().to_owned()), ..spec };
    let error = open(&spec).err().unwrap();
    assert!(matches!(error, DataError::Memory { .. }), "{error}");
}
