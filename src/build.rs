//! Names the shared library and pins it in memory; writes nothing.

/// The ABI number of the library: the digit of `libweightsync.so.0`.
const ABI_VERSION: u32 = 0;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rustc-env=WSYNC_ABI={ABI_VERSION}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libweightsync.so.{ABI_VERSION}");
    // Threads of ours may be running when somebody calls dlclose.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
