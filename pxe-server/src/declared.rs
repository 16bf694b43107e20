//! What operators declare that boot servers go by.

use std::net::IpAddr;

use drophammer_protocol::resource::ImageSource;

/// What operators declared that a boot server follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Declared {
    /// Name and time servers of its partition.
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) ntp: Vec<String>,
    /// Where images come from. None for a boot server that runs alone: it has them all from its control API.
    pub(crate) images: Vec<ImageSource>,
}
