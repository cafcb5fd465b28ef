#include "agent/kube/identity.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace rubato::kube {
namespace {

const std::string kId = "3f1e5d7c9b8a60123456789abcdef0123456789abcdef0123456789abcdef012";
const std::string kOtherId = "aaaa5d7c9b8a60123456789abcdef0123456789abcdef0123456789abcdefaaa";
const std::string kUid = "7a3bd1f2-0c4e-4a5b-9d6f-1e2a3b4c5d6e";
const std::string kSlice = "7a3bd1f2_0c4e_4a5b_9d6f_1e2a3b4c5d6e";
const std::string kOtherUid = "11111111-0c4e-4a5b-9d6f-1e2a3b4c5d6e";
const std::string kStatic = "5d41402abc4b2a76b9719d911017c592";

struct Sample {
  const char* what;
  std::string text;
  CgroupIdentity expected;
};

TEST(IdentityTest, ReadsWhatRuntimesWrite) {
  const CgroupIdentity burstable{kUid, kId, QosClass::kBurstable};
  const CgroupIdentity best_effort{kUid, kId, QosClass::kBestEffort};
  const CgroupIdentity guaranteed{kUid, kId, QosClass::kGuaranteed};
  const std::vector<Sample> samples = {
      {"containerd, systemd, v2",
       "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kSlice +
           ".slice/cri-containerd-" + kId + ".scope\n",
       burstable},
      {"containerd, systemd, v2, guaranteed",
       "0::/kubepods.slice/kubepods-pod" + kSlice + ".slice/cri-containerd-" + kId + ".scope\n",
       guaranteed},
      {"containerd, systemd, v1",
       "12:devices:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + kSlice +
           ".slice/cri-containerd-" + kId +
           ".scope\n"
           "11:cpu,cpuacct:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" +
           kSlice + ".slice/cri-containerd-" + kId +
           ".scope\n"
           "10:rdma:/\n"
           "1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" +
           kSlice + ".slice/cri-containerd-" + kId + ".scope\n0::/\n",
       best_effort},
      {"containerd, cgroupfs, v1",
       "5:memory:/kubepods/burstable/pod" + kUid + "/" + kId + "\n4:pids:/kubepods/burstable/pod" +
           kUid + "/" + kId + "\n",
       burstable},
      {"containerd, cgroupfs, v2, guaranteed", "0::/kubepods/pod" + kUid + "/" + kId + "\n",
       guaranteed},
      {"containerd, cgroupfs, v2, best effort",
       "0::/kubepods/besteffort/pod" + kUid + "/" + kId + "\n", best_effort},
      {"containerd with cgroupfs under a kubelet with systemd",
       "9:memory:/system.slice/containerd.service/kubepods-burstable-pod" + kSlice +
           ".slice:cri-containerd:" + kId + "\n",
       burstable},
      {"the same, without a folder",
       "0::/kubepods-besteffort-pod" + kSlice + ".slice:cri-containerd:" + kId + "\n", best_effort},
      {"CRI-O, systemd, v2",
       "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kSlice +
           ".slice/crio-" + kId + ".scope\n",
       burstable},
      {"CRI-O with crun's cgroup of its own",
       "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kSlice +
           ".slice/crio-" + kId + ".scope/container\n",
       burstable},
      {"CRI-O, cgroupfs", "0::/kubepods/burstable/pod" + kUid + "/crio-" + kId + ".scope\n",
       burstable},
      {"Docker by cri-dockerd, systemd",
       "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kSlice +
           ".slice/docker-" + kId + ".scope\n",
       burstable},
      {"Docker, cgroupfs, v1", "3:cpuset:/kubepods/besteffort/pod" + kUid + "/" + kId + "\n",
       best_effort},
      {"another cgroup root, cgroupfs",
       "0::/kubelet/kubepods/burstable/pod" + kUid + "/" + kId + "\n", burstable},
      {"another cgroup root, systemd",
       "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
       "kubelet-kubepods-burstable-pod" +
           kSlice + ".slice/cri-containerd-" + kId + ".scope\n",
       burstable},
      {"a node that is a container itself",
       "0::/docker/" + kOtherId + "/kubelet/kubepods/burstable/pod" + kUid + "/" + kId + "\n",
       burstable},
      {"the same under systemd",
       "0::/system.slice/docker-" + kOtherId +
           ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + kSlice +
           ".slice/cri-containerd-" + kId + ".scope\n",
       guaranteed},
      {"seen from a private cgroup namespace, systemd",
       "0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod" + kSlice +
           ".slice/cri-containerd-" + kId + ".scope\n",
       best_effort},
      {"from a guaranteed pod, of a guaranteed pod",
       "0::/../../kubepods-pod" + kSlice + ".slice/cri-containerd-" + kId + ".scope\n", guaranteed},
      {"seen from a private cgroup namespace, cgroupfs, of the same class",
       "0::/../../pod" + kUid + "/" + kId + "\n",
       {kUid, kId, QosClass::kUnknown}},
      {"of another class", "0::/../../../burstable/pod" + kUid + "/" + kId + "\n", burstable},
      {"static pod, cgroupfs",
       "0::/kubepods/burstable/pod" + kStatic + "/" + kId + "\n",
       {kStatic, kId, QosClass::kBurstable}},
      {"static pod, systemd",
       "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + kStatic +
           ".slice/cri-containerd-" + kId + ".scope\n",
       {kStatic, kId, QosClass::kBurstable}},
      {"cgroups below the container",
       "0::/kubepods.slice/kubepods-pod" + kSlice + ".slice/cri-containerd-" + kId +
           ".scope/init.scope/user\n",
       guaranteed},
      {"a cgroup that was removed already",
       "0::/kubepods/burstable/pod" + kUid + "/" + kId + " (deleted)\n", burstable},
      {"no newline at the end", "0::/kubepods/burstable/pod" + kUid + "/" + kId, burstable},
  };
  for (const Sample& sample : samples) {
    EXPECT_EQ(ParseCgroup(sample.text), sample.expected) << sample.what << "\n" << sample.text;
    EXPECT_TRUE(ParseCgroup(sample.text).known()) << sample.what;
  }
}

TEST(IdentityTest, SaysWhatIsInSight) {
  // The reader is in the same pod.
  EXPECT_EQ(ParseCgroup("0::/../cri-containerd-" + kId + ".scope\n"),
            (CgroupIdentity{"", kId, QosClass::kUnknown}));
  // In the same container.
  EXPECT_EQ(ParseCgroup("0::/\n"), CgroupIdentity{});
  // Not started by Kubernetes.
  EXPECT_EQ(ParseCgroup("0::/system.slice/docker-" + kId + ".scope\n"),
            (CgroupIdentity{"", kId, QosClass::kUnknown}));
  EXPECT_EQ(ParseCgroup("0::/machine.slice/libpod-" + kId + ".scope/container\n"),
            (CgroupIdentity{"", kId, QosClass::kUnknown}));
  // The pod's own cgroup, without a container.
  EXPECT_EQ(ParseCgroup("0::/kubepods/burstable/pod" + kUid + "\n"),
            (CgroupIdentity{kUid, "", QosClass::kBurstable}));
  // CRI-O's monitor is beside the container, not in it.
  EXPECT_EQ(ParseCgroup("0::/kubepods.slice/kubepods-pod" + kSlice + ".slice/crio-conmon-" + kId +
                        ".scope\n"),
            (CgroupIdentity{kUid, "", QosClass::kGuaranteed}));
}

TEST(IdentityTest, TheOutermostPodCounts) {
  // Whoever may make cgroups below its own can call them as it likes.
  EXPECT_EQ(ParseCgroup("0::/kubepods/burstable/pod" + kUid + "/" + kId + "/kubepods/pod" +
                        kOtherUid + "/" + kOtherId + "\n"),
            (CgroupIdentity{kUid, kId, QosClass::kBurstable}));
  EXPECT_EQ(ParseCgroup("0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod" + kUid +
                        "/" + kId + "\n"),
            CgroupIdentity{});
}

TEST(IdentityTest, ContradictionsTellNothing) {
  EXPECT_EQ(ParseCgroup("2:cpu:/kubepods/pod" + kUid + "/" + kId + "\n1:memory:/kubepods/pod" +
                        kOtherUid + "/" + kId + "\n"),
            CgroupIdentity{});
  EXPECT_EQ(ParseCgroup("2:cpu:/kubepods/pod" + kUid + "/" + kId + "\n1:memory:/kubepods/pod" +
                        kUid + "/" + kOtherId + "\n"),
            CgroupIdentity{});
}

TEST(IdentityTest, EverythingElseIsUnknown) {
  for (const std::string& text : std::vector<std::string>{
           "",
           "\n\n\n",
           "0::/init.scope\n",
           "0::/user.slice/user-1000.slice/session-2.scope\n",
           "0::/system.slice/kubelet.service\n",
           "garbage",
           "0:/kubepods/pod" + kUid + "/" + kId,  // Two fields only.
           "0::/kubepods/burstable/podsnooping/" + kId.substr(1),
           "0::/kubepods.slice/kubepods-burstable.slice\n",
           // Upper case, a dash too many, a digit too few.
           "0::/kubepods/pod7A3BD1F2-0C4E-4A5B-9D6F-1E2A3B4C5D6E/" + kId.substr(1),
           "0::/kubepods/pod7a3bd1f20-c4e-4a5b-9d6f-1e2a3b4c5d6e/" + kId.substr(1),
           "0::/kubepods/pod" + kUid.substr(1) + "/" + kId.substr(1),
           // Underscores are systemd's, dashes are cgroupfs's.
           "0::/kubepods/pod" + kSlice + "/x\n",
           "0::/kubepods.slice/kubepods-pod" + kUid + ".slice/x\n",
           // A slice whose name only ends alike.
           "0::/other.slice/other-pod" + kSlice + ".slice/x\n",
           std::string("0::/kubepods/pod\0/", 18),
           std::string(100000, ':'),
           std::string(100000, '/'),
       }) {
    EXPECT_EQ(ParseCgroup(text), CgroupIdentity{}) << text.substr(0, 200);
  }
}

}  // namespace
}  // namespace rubato::kube
