//! The same tests as those of the embedded engine, with the state in etcd; and those of several servers, which need it.

#[path = "api/main.rs"]
mod api;
#[path = "api/several.rs"]
mod several;
