//! `weightsync doctor`: what a GPU transport would find here.

mod report;
mod wheels;

use super::table::{print, print_json};
use clap::Args;
use report::{Finding, Report, cuda_text};
use std::path::PathBuf;
use weightsync::Result;
use weightsync::device::cuda::inspect;
use weightsync::transport::nccl::Nccl;
use weightsync::transport::nccl::library::MULTI_RANK_GPU;

/// Say which NCCL and CUDA are found here, what they can do and what is wrong
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Look at this libnccl.so.2 instead of searching
    #[arg(long, value_name = "FILE")]
    nccl: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync doctor`.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let report = examine(args);
    if args.json {
        return print_json(&report.to_json());
    }
    print(report)
}

fn examine(args: &DoctorArgs) -> Report {
    let mut report = Report::default();
    find_cuda(&mut report);
    find_nccl(args, &mut report);
    look_at_variables(&mut report);
    report
}

/// The CUDA that a transport would use, and what it says of GPUs.
fn find_cuda(report: &mut Report) {
    inspect::fall_back(&wheels::cudart());
    let cuda = match inspect::inspect() {
        Ok(cuda) => cuda,
        Err(e) => {
            return report.findings.push(Finding::problem(
                e.to_string(),
                "pip install nvidia-cuda-runtime (or nvidia-cuda-runtime-cu12) into the \
                 environment of the program, or install CUDA",
            ));
        }
    };
    if let Err(e) = &cuda.devices {
        let advice = match cuda.driver_version {
            0 => "install NVIDIA's driver; in a container, start it with --gpus all",
            _ => "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES",
        };
        report
            .findings
            .push(Finding::problem(e.to_string(), advice));
    } else if let Some(problem) = &cuda.driver_problem {
        report.findings.push(Finding::problem(
            problem.clone(),
            "the driver's library lies beside libnvidia-ml.so; set WSYNC_CUDA_LIBRARY to its path",
        ));
    }
    let major = |version: i32| version / 1000;
    let is_old =
        cuda.driver_version > 0 && major(cuda.driver_version) < major(cuda.runtime_version);
    if is_old {
        report.findings.push(Finding::problem(
            format!(
                "the driver takes CUDA {} and the runtime is {}",
                cuda_text(cuda.driver_version),
                cuda_text(cuda.runtime_version)
            ),
            "update the driver, or use a runtime of the driver's CUDA",
        ));
    }
    report.cuda = Some(cuda);
}

/// The NCCL that a transport would use, or failing that the one of a wheel,
/// which a program that imports torch would use.
fn find_nccl(args: &DoctorArgs, report: &mut Report) {
    let error = match Nccl::find(args.nccl.as_deref()) {
        Ok(nccl) => return report.nccl = Some(nccl),
        Err(e) => e,
    };
    let wheels = match &args.nccl {
        Some(_) => Vec::new(),
        None => wheels::nccl(),
    };
    let Some(nccl) = wheels.iter().find_map(|w| Nccl::find(Some(w)).ok()) else {
        return report.findings.push(Finding::problem(
            error.to_string(),
            "pip install nvidia-nccl-cu13 (or -cu12) into the environment of the program, or set \
             WSYNC_NCCL_LIBRARY to the full path of libnccl.so.2",
        ));
    };
    report.nccl = Some(nccl);
    report.findings.push(Finding::remark(
        "this NCCL lies in a Python environment, where the system's loader does not look",
        "in a program that has imported torch it is found by itself; elsewhere set \
         WSYNC_NCCL_LIBRARY to the path above",
    ));
}

/// Variables that contradict what was found.
fn look_at_variables(report: &mut Report) {
    let Some(nccl) = report.nccl else {
        return;
    };
    if let [first, .., last] = nccl.copies() {
        report.findings.push(Finding::problem(
            format!(
                "two copies of NCCL are in the process: {} and {}",
                first.display(),
                last.display()
            ),
            "have every user load the same file",
        ));
    }
    let wants_many = std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|v| v.trim() != "0");
    if wants_many && !nccl.can(&MULTI_RANK_GPU) {
        report.findings.push(Finding::problem(
            format!(
                "NCCL_MULTI_RANK_GPU_ENABLE is set and NCCL {} does not know it",
                nccl.version_text()
            ),
            format!(
                "several ranks on one GPU need NCCL {}",
                MULTI_RANK_GPU.since_text()
            ),
        ));
    }
}
