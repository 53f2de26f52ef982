//! A safetensors checkpoint, its files mapped into memory.
//!
//! ```text
//!   model-00001-of-..  ─┐            ┌─ raw     tensors as the files have them
//!   model-00002-of-..  ─┼─► headers ─┤
//!   index, config.json ─┘            └─ model   canonical tensors of the model
//! ```

use super::check::of_file;
use memmap2::Mmap;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use weightsync::layout::models::{HuggingFaceSizes, Inventory};
use weightsync::layout::tensor::{IndexBox, Tensor, TensorIndex};
use weightsync::layout::view::View;
use weightsync::layout::{Layout, SafetensorsFile};
use weightsync::{Error, Result};

/// What a directory names the file of a single-file checkpoint, the index of
/// several, and the configuration of the model.
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
/// Put together tensors that are kept; members of a fused buffer take turns.
const KEPT_COUNT: usize = 4;

/// A checkpoint that can be read at any place.
#[derive(Debug)]
pub struct Checkpoint {
    files: BTreeMap<String, Arc<Mmap>>,
    /// Tensors as the files have them, all on one rank.
    raw: Layout,
    /// The same bytes in the canonical tensors of the model, if it is known.
    model: Option<Layout>,
    template: Option<Layout>,
    kept: Mutex<Vec<(String, Arc<[u8]>)>>,
}

/// The part of an index that matters here.
#[derive(Deserialize)]
struct IndexDoc {
    weight_map: BTreeMap<String, String>,
}

/// The canonical values of a tensor.
#[derive(Clone, Debug)]
pub enum Stored<'a> {
    /// As they lie in a file.
    Mapped(&'a [u8]),
    /// Put together from several places.
    Gathered(Arc<[u8]>),
}

impl Stored<'_> {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Stored::Mapped(b) => b,
            Stored::Gathered(b) => b,
        }
    }
}

impl Checkpoint {
    /// Maps a file, or the files of a directory, and reads their headers; the
    /// error names the file. A `config.json` beside them says which model it
    /// is, or the one that is given.
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Checkpoint> {
        let mut files = BTreeMap::new();
        for (name, path) in list(path)? {
            files.insert(name, Arc::new(map(&path)?));
        }
        let raw = raw_layout(&files, 0, 1).map_err(|e| of_file(path, e))?;
        let beside = path.join(CONFIG);
        let config = config.or(beside.is_file().then_some(beside.as_path()));
        let template = config.map(template).transpose()?;
        // A layout with the checkpoint's own names needs no model: what the
        // model does not know is said when something of it is wanted.
        let model = template.as_ref().and_then(|t| raw.recast(t).ok());
        Ok(Checkpoint {
            files,
            raw,
            model,
            template,
            kept: Mutex::default(),
        })
    }

    /// How many tensors it has.
    pub fn tensor_count(&self) -> usize {
        self.raw.tensors().len()
    }

    /// The layout of `readers` ranks that hold its files, in the canonical
    /// tensors of the model where that is known.
    pub fn layout(&self, first_rank: u32, readers: u32) -> Result<Layout> {
        let raw = raw_layout(&self.files, first_rank, readers)?;
        match &self.template {
            Some(template) => raw.recast(template),
            None => Ok(raw),
        }
    }

    /// The file that is the whole of a buffer.
    pub fn file(&self, name: &str, bytes: u64) -> Option<&Arc<Mmap>> {
        self.files.get(name).filter(|m| m.len() as u64 == bytes)
    }

    /// The values of a tensor of `layout`, found under its name or an alias.
    /// The shape may be another one with as many elements.
    pub fn values(&self, layout: &Layout, tensor: TensorIndex) -> Result<Stored<'_>> {
        let t = &layout.tensors()[tensor.index()];
        let (told, views) = self.find(layout, tensor)?;
        if let [view] = views
            && is_plain(view, t)
        {
            let from = view.offset as usize;
            let all = self.file_of(told, view)?;
            return Ok(Stored::Mapped(&all[from..from + t.bytes() as usize]));
        }
        self.gather(t, told, views).map(Stored::Gathered)
    }

    /// Refuses a tensor of `layout` that the checkpoint does not have as it
    /// is there.
    pub fn look_up(&self, layout: &Layout, tensor: TensorIndex) -> Result<()> {
        self.find(layout, tensor).map(|_| ())
    }

    /// Where the values of a tensor of `layout` are.
    fn find(&self, layout: &Layout, tensor: TensorIndex) -> Result<(&Layout, &[View])> {
        let t = &layout.tensors()[tensor.index()];
        let names = || std::iter::once(t.name.as_str()).chain(layout.aliases_of(&t.name));
        // A name may mean one thing in the files and another, with its axes in
        // another order, in the model: the shape tells, and the model goes first.
        let told = [self.model.as_ref(), Some(&self.raw)].into_iter().flatten();
        let mut found: Vec<(&Layout, TensorIndex)> = told
            .filter_map(|told| Some((told, names().find_map(|n| told.find_tensor(n))?)))
            .collect();
        found.sort_by_key(|(told, i)| told.tensors()[i.index()].shape != t.shape);
        if let Some(&(told, found)) = found.first() {
            let views = views_of(told, found);
            check(t, &told.tensors()[found.index()], views)?;
            return Ok((told, views));
        }
        let why = match &self.template {
            Some(template) => self.raw.recast(template).err(),
            None => None,
        };
        let why = why.map_or(String::new(), |e| {
            format!(", and is not one of its model: {}", e.message)
        });
        Err(Error::layout(format!(
            "tensor \"{}\" is not in the checkpoint, which has {} tensors{why}",
            t.name,
            self.tensor_count()
        )))
    }

    /// The file that a view looks into; its range lies inside.
    fn file_of(&self, told: &Layout, view: &View) -> Result<&[u8]> {
        let buffers = told.explicit().first().map(|r| &r.buffers);
        let buffer = buffers.and_then(|b| b.get(view.buffer as usize));
        let file = buffer.and_then(|b| self.files.get(&b.name));
        let inside = |m: &&Arc<Mmap>| view.extent().is_some_and(|(_, hi)| hi <= m.len() as u64);
        match file.filter(inside) {
            Some(m) => Ok(m),
            None => Err(Error::internal("a view is in no file")),
        }
    }

    /// Copies the pieces of a tensor to where they belong.
    fn gather(&self, t: &Tensor, told: &Layout, views: &[View]) -> Result<Arc<[u8]>> {
        let kept = self.kept.lock();
        let mut kept = kept.map_err(|_| Error::internal("a reader failed"))?;
        if let Some((_, bytes)) = kept.iter().find(|(name, _)| *name == t.name) {
            return Ok(bytes.clone());
        }
        let mut out = vec![0u8; t.bytes() as usize];
        for v in views {
            let shape = &told.tensors()[v.tensor.index()].shape;
            copy(self.file_of(told, v)?, v, shape, &mut out);
        }
        let bytes: Arc<[u8]> = out.into();
        kept.insert(0, (t.name.clone(), bytes.clone()));
        kept.truncate(KEPT_COUNT);
        Ok(bytes)
    }
}

/// The pieces of a tensor, on the only rank of a layout.
fn views_of(told: &Layout, tensor: TensorIndex) -> &[View] {
    let all = told.explicit().first().map_or(&[][..], |r| &r.views);
    let from = all.partition_point(|v| v.tensor < tensor);
    let count = all[from..].partition_point(|v| v.tensor == tensor);
    &all[from..from + count]
}

/// True if a view is the whole of a tensor, row-major without gaps.
fn is_plain(view: &View, t: &Tensor) -> bool {
    let strides = view.bounds.contiguous_strides(t.dtype.bytes());
    strides.as_ref() == Some(&view.strides) && view.bounds.elements() == elements(t)
}

fn check(t: &Tensor, own: &Tensor, views: &[View]) -> Result<()> {
    let (have, want) = (elements(own), elements(t));
    if have != want {
        return Err(Error::layout(format!(
            "tensor \"{}\" has {have} elements in the checkpoint (shape {:?}) and {want} in the layout (shape {:?})",
            t.name,
            own.shape.as_slice(),
            t.shape.as_slice()
        )));
    }
    if let Some(v) = views.iter().find(|v| v.dtype != t.dtype) {
        return Err(Error::layout(format!(
            "tensor \"{}\" is {} in the checkpoint and {} in the layout; \
             the layout's \"dtype\" is that of the checkpoint, \"stored\" may differ",
            t.name, v.dtype, t.dtype
        )));
    }
    let held: u64 = views.iter().map(|v| v.bounds.elements()).sum();
    if held != want {
        return Err(Error::layout(format!(
            "tensor \"{}\" has {want} elements, of which the checkpoint holds {held}",
            t.name
        )));
    }
    Ok(())
}

fn elements(t: &Tensor) -> u64 {
    t.shape.iter().product()
}

/// Copies one view of a file into a whole row-major tensor.
fn copy(file: &[u8], v: &View, shape: &[u64], out: &mut [u8]) {
    let spans = v.bounds.spans();
    let element = v.dtype.bytes() as usize;
    let whole = IndexBox::whole(shape);
    let Some(steps) = whole.contiguous_strides(v.dtype.bytes()) else {
        return;
    };
    let (run, run_step) = match (spans.last(), v.strides.last()) {
        (Some(s), Some(&step)) => (s.len() as usize, step as usize),
        _ => (1, 0),
    };
    let outer = spans.len().saturating_sub(1);
    let mut at: Vec<u64> = spans.iter().map(|s| s.lo).collect();
    loop {
        let to: usize = at
            .iter()
            .zip(&steps)
            .map(|(a, s)| *a as usize * *s as usize)
            .sum();
        let ahead = at.iter().zip(spans).zip(&v.strides);
        let from = v.offset as i64 + ahead.map(|((a, s), t)| (a - s.lo) as i64 * t).sum::<i64>();
        let from = from as usize;
        if run_step == element {
            out[to..to + run * element].copy_from_slice(&file[from..from + run * element]);
        } else {
            for i in 0..run {
                let value = &file[from + i * run_step..][..element];
                out[to + i * element..][..element].copy_from_slice(value);
            }
        }
        let mut axis = outer;
        loop {
            let Some(up) = axis.checked_sub(1) else {
                return;
            };
            axis = up;
            at[axis] += 1;
            if at[axis] < spans[axis].hi {
                break;
            }
            at[axis] = spans[axis].lo;
        }
    }
}

/// The files of a checkpoint by name: the one given, those that the index of
/// a directory names, or all in it.
fn list(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |e| Error::os(format_args!("cannot read {}", path.display()), &e);
    let named = |p: PathBuf| -> (String, PathBuf) {
        let name = p
            .file_name()
            .map_or(Cow::Borrowed(""), |n| n.to_string_lossy());
        (name.into_owned(), p)
    };
    if !path.is_dir() {
        return Ok(vec![named(path.to_path_buf())]);
    }
    let index = path.join(INDEX);
    if index.is_file() {
        let text = std::fs::read(&index).map_err(failed)?;
        let doc: IndexDoc = serde_json::from_slice(&text)
            .map_err(|e| of_file(&index, Error::corrupt(format!("is no index: {e}"))))?;
        let files: BTreeSet<&String> = doc.weight_map.values().collect();
        let plain = |f: &&String| Path::new(f).file_name() == Some(f.as_str().as_ref());
        if let Some(odd) = files.iter().find(|f| !plain(f)) {
            let what = format!("names \"{odd}\", which is no file of its directory");
            return Err(of_file(&index, Error::corrupt(what)));
        }
        return Ok(files.into_iter().map(|f| named(path.join(f))).collect());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|e| e == "safetensors") {
            found.push(named(file));
        }
    }
    found.sort();
    match found.is_empty() {
        false => Ok(found),
        true => Err(of_file(
            path,
            Error::layout(format!("has neither {INDEX} nor a .safetensors file")),
        )),
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let failed = |e| Error::os(format_args!("cannot read {}", path.display()), &e);
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the mapping is private to us and only read. Whoever changes or
    // truncates the file meanwhile gets wrong values or SIGBUS, as with every
    // reader that maps.
    unsafe { Mmap::map(&file) }.map_err(failed)
}

fn raw_layout(files: &BTreeMap<String, Arc<Mmap>>, first: u32, ranks: u32) -> Result<Layout> {
    let files: Vec<SafetensorsFile<'_>> = files
        .iter()
        .map(|(name, map)| SafetensorsFile {
            name,
            start: map,
            bytes: map.len() as u64,
        })
        .collect();
    Layout::from_safetensors(&files, first, ranks)
}

/// How the checkpoint of a model is stored.
fn template(config: &Path) -> Result<Layout> {
    let failed = |e| Error::os(format_args!("cannot read {}", config.display()), &e);
    let text = std::fs::read(config).map_err(failed)?;
    let model = Inventory::from_config(&text).map_err(|e| of_file(config, e))?;
    Layout::hugging_face(&model, &HuggingFaceSizes::default(), 0)
}
