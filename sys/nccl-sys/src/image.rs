//! Shared objects of this process, and what they call themselves.

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A shared object that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file, as the loader knows it; empty for the program itself.
    pub path: PathBuf,
    /// Its `DT_SONAME`, by which the loader recognises it.
    pub soname: String,
}

/// Every shared object of the process, in the order of loading.
pub fn images() -> Vec<Image> {
    let mut all: Vec<Image> = Vec::new();
    // SAFETY: the callback gets our vector back and nothing else, and neither
    // loads nor unloads anything.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut all).cast()) };
    all
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    all: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid record, and what `images` handed in.
    let (info, all) = unsafe { (&*info, &mut *all.cast::<Vec<Image>>()) };
    let path = if info.dlpi_name.is_null() {
        PathBuf::new()
    } else {
        // SAFETY: the loader's names are NUL-terminated.
        let name = unsafe { CStr::from_ptr(info.dlpi_name) };
        PathBuf::from(OsStr::from_bytes(name.to_bytes()))
    };
    // SAFETY: the record is that of a loaded object.
    let soname = unsafe { soname(info) }.unwrap_or_default();
    all.push(Image { path, soname });
    0
}

/// One entry of a dynamic section.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: u64,
}

const DT_NULL: i64 = 0;
const DT_STRTAB: i64 = 5;
const DT_SONAME: i64 = 14;

/// # Safety
///
/// `info` is the record of an object that stays loaded.
unsafe fn soname(info: &libc::dl_phdr_info) -> Option<String> {
    // SAFETY: the loader gives a table of this length.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let dynamic = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC)?;
    let mut entry = (info.dlpi_addr + dynamic.p_vaddr) as *const Dynamic;
    let (mut strings, mut name) = (0, None);
    loop {
        // SAFETY: the section ends with DT_NULL, and we stop there.
        let Dynamic { tag, value } = unsafe { entry.read() };
        match tag {
            DT_NULL => break,
            DT_STRTAB => strings = value,
            DT_SONAME => name = Some(value),
            _ => {}
        }
        // SAFETY: this was not the last entry.
        entry = unsafe { entry.add(1) };
    }
    // The loader has made the table's address absolute, except in the vDSO.
    if strings < info.dlpi_addr {
        return None;
    }
    // SAFETY: an offset into the object's string table.
    let text = unsafe { CStr::from_ptr((strings + name?) as *const _) };
    Some(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_is_there_under_its_name() {
        let all = images();
        let libc = all.iter().find(|i| i.soname == "libc.so.6").unwrap();
        assert!(libc.path.is_absolute(), "{libc:?}");
    }
}
