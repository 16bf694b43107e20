//! A lab: one private network, one boot server, some machines. Everything ends with it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use drophammer_control::client::Client;
use drophammer_initramfs::KERNEL;

use crate::accel::{self, Accel};
use crate::kit;
use crate::net::{self, Namespace};
use crate::qemu::MachineSpec;
use crate::server::{Server, ServerSpec};
use crate::slots::Slots;
use crate::socket::{self, Answer, MachineStatus, PowerAction, Request, Status};
use crate::vm::Machine;

#[derive(Clone, Debug)]
pub struct LabSpec {
    /// The lab's directory, made if it isn't there. Its path has to be shorter than 100 characters.
    pub dir: PathBuf,
    pub server: ServerSpec,
    /// How many machines it will have at most. Their places are waited for at the start.
    pub machines: usize,
}

#[derive(Debug)]
pub struct Lab {
    pub server: Arc<Server>,
    pub accel: Accel,
    dir: PathBuf,
    namespace: Namespace,
    slots: Slots,
    shared: Arc<Shared>,
    door: Option<JoinHandle<()>>,
}

/// What requests from outside can reach.
#[derive(Debug)]
struct Shared {
    server: Arc<Server>,
    namespace: Namespace,
    accel: Accel,
    machines: Mutex<Vec<Arc<Machine>>>,
    ending: Mutex<bool>,
    ended: Condvar,
}

impl Lab {
    pub fn start(spec: LabSpec) -> Result<Self> {
        let accel = accel::choose(&drophammer_images::cache_dir()?, &spec.server.boot_dir.join(KERNEL))?.accel;
        let slots = Slots::take(&kit::slots_dir()?, spec.machines)?;
        fs::create_dir_all(&spec.dir).with_context(|| format!("creating {}", spec.dir.display()))?;
        let namespace = Namespace::create()?;
        namespace.build()?;
        let path = spec.dir.join(socket::SOCKET);
        let listener = UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
        let server = Arc::new(Server::start(&spec.server, &spec.dir, &namespace)?);
        let shared = Arc::new(Shared {
            server: Arc::clone(&server),
            namespace: namespace.clone(),
            accel,
            machines: Mutex::default(),
            ending: Mutex::new(false),
            ended: Condvar::new(),
        });
        let door = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.keep_door(&listener))
        };
        Ok(Self { server, accel, dir: spec.dir, namespace, slots, shared, door: Some(door) })
    }

    /// A new machine, switched off.
    pub fn add_machine(&self, spec: MachineSpec) -> Result<Arc<Machine>> {
        let mut machines = self.shared.machines();
        ensure!(
            machines.len() < self.slots.count(),
            "adding {}: this lab was started for {} machines",
            spec.name,
            self.slots.count()
        );
        ensure!(machines.iter().all(|m| m.spec.name != spec.name), "there is a machine {} already", spec.name);
        let tap = format!("tap{}", machines.len());
        let dir = machine_dir(&self.dir, &spec.name);
        let machine = Arc::new(Machine::create(spec, &dir, tap, &self.namespace, self.accel)?);
        machines.push(Arc::clone(&machine));
        Ok(machine)
    }

    pub fn machines(&self) -> Vec<Arc<Machine>> {
        self.shared.machines().clone()
    }

    /// An operator at the server's own socket.
    pub fn client(&self) -> Result<Client> {
        self.server.client()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Waits until somebody asks over the socket for the lab's end.
    pub fn wait_down(&self) {
        let mut ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ending {
            ending = self.shared.ended.wait(ending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Switches everything off. The directory stays.
    pub fn down(self) {
        drop(self);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shared.end();
        // The door is closed first: nothing is switched on again behind our back.
        if net::connect(&self.dir, socket::SOCKET).is_ok()
            && let Some(door) = self.door.take()
        {
            door.join().ok();
        }
        fs::remove_file(self.dir.join(socket::SOCKET)).ok();
        self.server.kill();
        for machine in self.shared.machines().drain(..) {
            machine.power_cut();
        }
    }
}

/// Where a lab keeps what belongs to one machine.
pub fn machine_dir(lab: &Path, name: &str) -> PathBuf {
    lab.join("machines").join(name)
}

impl Shared {
    fn machines(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Machine>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, reference: &str) -> Result<Arc<Machine>> {
        let machines = self.machines();
        let found =
            machines.iter().find(|m| m.spec.name == reference || m.spec.uuid.to_string() == reference).map(Arc::clone);
        found.with_context(|| {
            let names: Vec<_> = machines.iter().map(|m| m.spec.name.as_str()).collect();
            format!("this lab has no machine {reference:?}; it has {}", names.join(", "))
        })
    }

    /// Answers at the lab's socket until it ends. Requests are rare and short, so one after the other will do.
    fn keep_door(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.is_ending() {
                return;
            }
            // Whoever hung up before the answer doesn't want it.
            stream.map(|stream| socket::answer(&stream, |request| self.decide(request))).ok();
        }
    }

    fn decide(&self, request: Request) -> Result<Answer> {
        match request {
            Request::Power { machine, action } => {
                let machine = self.find(&machine)?;
                match action {
                    PowerAction::On => machine.power_on()?,
                    PowerAction::Off => machine.power_cut(),
                    PowerAction::Cycle => machine.power_cycle()?,
                    PowerAction::Reset => machine.reset()?,
                }
                Ok(Answer::Done)
            }
            Request::Status => Ok(Answer::Status(Status {
                pid: std::process::id(),
                accel: self.accel,
                server_running: self.server.is_running(),
                namespaces: self.namespace.place(),
                machines: self
                    .machines()
                    .iter()
                    .map(|m| MachineStatus { on: m.is_on(), spec: m.spec.clone() })
                    .collect(),
            })),
            Request::Down => {
                self.end();
                Ok(Answer::Done)
            }
        }
    }

    fn is_ending(&self) -> bool {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.notify_all();
    }
}
