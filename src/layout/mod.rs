//! Who holds which bytes.
