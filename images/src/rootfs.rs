//! A small file tree in memory, and the one tar that it is written as: sorted, owned by root, with one date for all.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};

use crate::recipe::Recipe;

/// Files by their path without the leading slash.
#[derive(Debug, Default)]
pub(crate) struct Rootfs(BTreeMap<String, Node>);

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Dir { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

impl Rootfs {
    /// What the recipe itself brings, without any package.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        let mut tree = Self::default();
        for (path, mode) in &recipe.dirs {
            tree.dir(path, mode.0);
        }
        for (path, file) in &recipe.files {
            // TOML drops the first newline of a text in ''' and keeps the last.
            tree.file(path, file.mode.map_or(0o644, |mode| mode.0), file.text.clone().into_bytes());
        }
        for (path, target) in &recipe.links {
            tree.link(path, target);
        }
        tree
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32) {
        self.put(path, Node::Dir { mode });
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.put(path, Node::File { mode, content });
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link { target: target.to_owned() });
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_start_matches('/'))
    }

    /// Missing parents come with it, as ordinary directories.
    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].to_owned()).or_insert(Node::Dir { mode: 0o755 });
        }
        self.0.insert(path.to_owned(), node);
    }

    pub(crate) fn write(&self, to: impl Write, mtime: u64) -> Result<()> {
        let mut tar = tar::Builder::new(to);
        for (path, node) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(mtime);
            let written = match node {
                Node::Dir { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Node::File { mode, content } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice())
                }
                Node::Link { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)
                }
            };
            written.with_context(|| format!("writing /{path} to the tar"))?;
        }
        tar.into_inner().and_then(|mut to| to.flush()).context("finishing the tar")
    }
}
