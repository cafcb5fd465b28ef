// Package apicheck holds the rendered chart against Kubernetes' own types: every object decodes
// strictly (an unknown or misspelt field is an error), and what the chart promises about privileges,
// host folders and rights is read from the decoded objects, not from their text.
//
// It reads tests/helm/golden, which chart_test.py keeps equal to what the chart renders.
package apicheck

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// One rendered manifest, decoded.
type object struct {
	file string
	kind string
	name string
	any
}

var kinds = map[string]func() any{
	"v1/ConfigMap":                       func() any { return new(core.ConfigMap) },
	"v1/Namespace":                       func() any { return new(core.Namespace) },
	"v1/Pod":                             func() any { return new(core.Pod) },
	"v1/Service":                         func() any { return new(core.Service) },
	"v1/ServiceAccount":                  func() any { return new(core.ServiceAccount) },
	"apps/v1/DaemonSet":                  func() any { return new(apps.DaemonSet) },
	"networking.k8s.io/v1/NetworkPolicy": func() any { return new(networking.NetworkPolicy) },
	"rbac.authorization.k8s.io/v1/ClusterRole":                         func() any { return new(rbac.ClusterRole) },
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding":                  func() any { return new(rbac.ClusterRoleBinding) },
	"admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy":        func() any { return new(admission.ValidatingAdmissionPolicy) },
	"admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding": func() any { return new(admission.ValidatingAdmissionPolicyBinding) },
	"monitoring.coreos.com/v1/PodMonitor":                              func() any { return new(monitoring.PodMonitor) },
	"monitoring.coreos.com/v1/ServiceMonitor":                          func() any { return new(monitoring.ServiceMonitor) },
	"monitoring.coreos.com/v1/PrometheusRule":                          func() any { return new(monitoring.PrometheusRule) },
}

func decode(file string, document []byte) (object, error) {
	var head struct {
		meta.TypeMeta `json:",inline"`
		Metadata      meta.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &head); err != nil {
		return object{}, err
	}
	kind := head.APIVersion + "/" + head.Kind
	make, known := kinds[kind]
	if !known {
		return object{}, fmt.Errorf("kind %s is not expected of the chart", kind)
	}
	typed := make()
	if err := yaml.UnmarshalStrict(document, typed); err != nil {
		return object{}, fmt.Errorf("%s %s: %w", kind, head.Metadata.Name, err)
	}
	return object{filepath.Base(file), head.Kind, head.Metadata.Name, typed}, nil
}

// What the goldens and the plain manifests hold.
func rendered(t *testing.T) []object {
	t.Helper()
	var files []string
	for _, pattern := range []string{"../golden/*.yaml", "../../../deploy/manifests/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("nothing matches %s (%v)", pattern, err)
		}
		files = append(files, found...)
	}
	var objects []object
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			if len(bytes.TrimSpace(stripComments(document))) == 0 {
				continue
			}
			decoded, err := decode(file, document)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			objects = append(objects, decoded)
		}
	}
	return objects
}

func stripComments(document []byte) []byte {
	var kept []string
	for _, line := range strings.Split(string(document), "\n") {
		if !strings.HasPrefix(line, "#") && line != "---" {
			kept = append(kept, line)
		}
	}
	return []byte(strings.Join(kept, "\n"))
}

func daemonSets(t *testing.T) map[string][]*apps.DaemonSet {
	sets := map[string][]*apps.DaemonSet{}
	for _, o := range rendered(t) {
		if set, ok := o.any.(*apps.DaemonSet); ok {
			component := set.Labels["app.kubernetes.io/component"]
			sets[component] = append(sets[component], set)
		}
	}
	for _, component := range []string{"agent", "mps", "softgpu", "cleanup"} {
		if len(sets[component]) == 0 {
			t.Fatalf("no case renders the daemonset %s", component)
		}
	}
	return sets
}

func TestEveryObjectDecodesStrictly(t *testing.T) {
	seen := map[string]int{}
	for _, o := range rendered(t) {
		seen[o.kind]++
	}
	for kind := range kinds {
		if seen[kind[strings.LastIndex(kind, "/")+1:]] == 0 {
			t.Errorf("no case renders a %s", kind)
		}
	}
}

func TestStrictMeansStrict(t *testing.T) {
	document := "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {internalTraficPolicy: Local}\n"
	if _, err := decode("here", []byte(document)); err == nil {
		t.Error("a misspelt field was accepted")
	}
}

func containers(set *apps.DaemonSet) []core.Container {
	pod := set.Spec.Template.Spec
	return append(append([]core.Container{}, pod.InitContainers...), pod.Containers...)
}

// The table of docs/kubernetes/security.md, as far as capabilities go.
var mayAdd = map[string][]core.Capability{"softgpu": {"SYS_PTRACE"}}

func TestContainersHoldNoPrivilege(t *testing.T) {
	check := func(where string, component string, c core.Container) {
		s := c.SecurityContext
		if s == nil || s.Capabilities == nil {
			t.Errorf("%s: no security context", where)
			return
		}
		if s.Privileged != nil && *s.Privileged {
			t.Errorf("%s is privileged", where)
		}
		if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
			t.Errorf("%s may gain privileges", where)
		}
		if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
			t.Errorf("%s can write its root", where)
		}
		if fmt.Sprint(s.Capabilities.Drop) != "[ALL]" {
			t.Errorf("%s drops %v, not ALL", where, s.Capabilities.Drop)
		}
		if fmt.Sprint(s.Capabilities.Add) != fmt.Sprint(mayAdd[component]) {
			t.Errorf("%s adds %v, expected %v", where, s.Capabilities.Add, mayAdd[component])
		}
		if s.SeccompProfile != nil || s.ProcMount != nil {
			t.Errorf("%s weakens what the pod says", where)
		}
		if len(c.VolumeDevices) != 0 {
			t.Errorf("%s takes raw devices", where)
		}
	}
	podLevel := func(where string, p core.PodSpec) {
		if p.SecurityContext == nil || p.SecurityContext.SeccompProfile == nil ||
			p.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s does not use the runtime's seccomp profile", where)
		}
		if p.HostNetwork || p.HostIPC {
			t.Errorf("%s uses the host's network or IPC", where)
		}
		if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
			t.Errorf("%s hands its token to every container", where)
		}
	}
	for component, sets := range daemonSets(t) {
		for _, set := range sets {
			podLevel(set.Name, set.Spec.Template.Spec)
			for _, c := range containers(set) {
				check(set.Name+"/"+c.Name, component, c)
			}
		}
	}
	tests := 0
	for _, o := range rendered(t) {
		if pod, ok := o.any.(*core.Pod); ok {
			tests++
			podLevel(o.file+"/"+pod.Name, pod.Spec)
			if pod.Spec.SecurityContext.RunAsNonRoot == nil || !*pod.Spec.SecurityContext.RunAsNonRoot {
				t.Errorf("%s: the test pod may be root", o.file)
			}
			for _, c := range pod.Spec.Containers {
				check(pod.Name+"/"+c.Name, "test", c)
			}
		}
	}
	if tests == 0 {
		t.Error("no case renders the test pod")
	}
}

func TestHostPIDOnlyWhereItIsAskedFor(t *testing.T) {
	for component, sets := range daemonSets(t) {
		for _, set := range sets {
			want := component == "softgpu" || component == "mps" ||
				component == "agent" && set.Name == "gpu-sharing" // The case hybrid-nvidia enables it.
			if set.Spec.Template.Spec.HostPID != want {
				t.Errorf("%s (%s): hostPID is %v", set.Name, component, set.Spec.Template.Spec.HostPID)
			}
		}
	}
}

// The host's folders that each container sees, and whether it may write there: the other half of the
// table. $kubelet, $root and $run stand for the values.
var hostFolders = map[string][]string{
	"agent/install":   {"$kubelet/pod-resources ro", "$root rw", "$run rw"},
	"agent/agent":     {"$kubelet/device-plugins rw", "$kubelet/pod-resources ro", "$root rw", "$run rw", "/run/nvidia/driver ro?"},
	"agent/scheduler": {"$root/alloc rw", "$run rw", "/var/lib/rubato/mps/pipe rw?"},
	"mps/mps-control": {"/dev/shm/rubato-mps rw", "/var/lib/rubato/mps/pipe rw"},
	"softgpu/device":  {"$root/softgpu/run rw", "/var/lib/rubato/mps/pipe rw?"},
	"cleanup/cleanup": {"$kubelet/pod-resources ro", "$root rw", "$run rw"},
}

func TestContainersSeeOnlyTheListedFoldersOfTheHost(t *testing.T) {
	seen := map[string]bool{}
	for component, sets := range daemonSets(t) {
		for _, set := range sets {
			values := map[string]string{"$kubelet": "/var/lib/kubelet", "$root": "/var/lib/rubato", "$run": "/run/rubato"}
			if strings.Contains(fmt.Sprint(set.Spec.Template.Spec.Volumes), "/data/kubelet") {
				values = map[string]string{"$kubelet": "/data/kubelet", "$root": "/data/rubato", "$run": "/data/run/rubato"}
			}
			hostPath := map[string]string{}
			for _, v := range set.Spec.Template.Spec.Volumes {
				if v.HostPath != nil {
					hostPath[v.Name] = v.HostPath.Path
				}
			}
			mounted := map[string]bool{}
			for _, c := range containers(set) {
				key := component + "/" + c.Name
				allowed, known := hostFolders[key]
				if !known {
					t.Fatalf("container %s is not in the list", key)
				}
				seen[key] = true
				want, optional := map[string]bool{}, map[string]bool{}
				for _, entry := range allowed {
					for from, to := range values {
						entry = strings.ReplaceAll(entry, from, to)
					}
					if strings.HasSuffix(entry, "?") {
						optional[strings.TrimSuffix(entry, "?")] = true
					} else {
						want[entry] = true
					}
				}
				for _, m := range c.VolumeMounts {
					path, isHost := hostPath[m.Name]
					mounted[m.Name] = true
					if !isHost {
						continue
					}
					entry := path + map[bool]string{true: " ro", false: " rw"}[m.ReadOnly]
					if !want[entry] && !optional[entry] {
						t.Errorf("%s %s mounts %s, which is not listed", set.Name, key, entry)
					}
					delete(want, entry)
					if m.MountPropagation != nil && *m.MountPropagation == core.MountPropagationBidirectional {
						t.Errorf("%s %s mounts into the host", set.Name, key)
					}
				}
				for missing := range want {
					t.Errorf("%s %s does not mount %s", set.Name, key, missing)
				}
			}
			for name := range hostPath {
				if !mounted[name] {
					t.Errorf("%s: volume %s is mounted nowhere", set.Name, name)
				}
			}
		}
	}
	if len(seen) != len(hostFolders) {
		t.Errorf("of the listed containers only %v are rendered", seen)
	}
}

func TestOnlyTheAgentTalksToTheAPIServer(t *testing.T) {
	for component, sets := range daemonSets(t) {
		for _, set := range sets {
			for _, c := range containers(set) {
				token := false
				for _, m := range c.VolumeMounts {
					token = token || m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
				}
				if want := component == "agent" && c.Name == "agent"; token != want {
					t.Errorf("%s/%s: token mounted: %v", set.Name, c.Name, token)
				}
			}
		}
	}
}

func TestRightsAreTheLeast(t *testing.T) {
	roles := 0
	for _, o := range rendered(t) {
		role, ok := o.any.(*rbac.ClusterRole)
		if !ok {
			continue
		}
		roles++
		var got []string
		for _, rule := range role.Rules {
			if fmt.Sprint(rule.APIGroups) != "[]" {
				t.Errorf("%s: groups %v", o.file, rule.APIGroups)
			}
			got = append(got, fmt.Sprintf("%v %v", rule.Resources, rule.Verbs))
		}
		want := []string{"[pods] [list watch]", "[events] [create patch]"}
		if o.file == "hybrid-nvidia.yaml" { // Node labels are on there.
			want = append(want, "[nodes] [get patch]")
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: rights %v, expected %v", o.file, got, want)
		}
	}
	if roles == 0 {
		t.Error("no case renders a role")
	}
}

func TestWhatTenantsNeedIsReplacedByHandOnly(t *testing.T) {
	for component, sets := range daemonSets(t) {
		for _, set := range sets {
			onDelete := set.Spec.UpdateStrategy.Type == apps.OnDeleteDaemonSetStrategyType
			if want := component == "mps" || component == "softgpu"; onDelete != want {
				t.Errorf("%s (%s): OnDelete is %v", set.Name, component, onDelete)
			}
		}
	}
}

func TestSelectorsFindTheirPodsAndNoOthers(t *testing.T) {
	for _, sets := range daemonSets(t) {
		for _, set := range sets {
			selector, err := meta.LabelSelectorAsSelector(set.Spec.Selector)
			if err != nil {
				t.Fatal(err)
			}
			for _, others := range daemonSets(t) {
				for _, other := range others {
					same := other.Labels["app.kubernetes.io/component"] == set.Labels["app.kubernetes.io/component"] &&
						other.Labels["app.kubernetes.io/instance"] == set.Labels["app.kubernetes.io/instance"]
					if selector.Matches(labelSet(other.Spec.Template.Labels)) != same {
						t.Errorf("the selector of %s and the pods of %s", set.Name, other.Name)
					}
				}
			}
		}
	}
}

type labelSet map[string]string

func (l labelSet) Has(key string) bool              { _, ok := l[key]; return ok }
func (l labelSet) Get(key string) string            { return l[key] }
func (l labelSet) Lookup(key string) (string, bool) { v, ok := l[key]; return v, ok }

func TestProbesLeadToPortsThatAreThere(t *testing.T) {
	for _, set := range daemonSets(t)["agent"] {
		for _, c := range set.Spec.Template.Spec.Containers {
			ports := map[string]bool{}
			for _, p := range c.Ports {
				ports[p.Name] = true
			}
			if c.LivenessProbe == nil || c.StartupProbe == nil {
				t.Errorf("%s/%s: a probe is missing", set.Name, c.Name)
			}
			for _, probe := range []*core.Probe{c.LivenessProbe, c.StartupProbe, c.ReadinessProbe} {
				if probe != nil && probe.HTTPGet != nil && !ports[probe.HTTPGet.Port.StrVal] {
					t.Errorf("%s/%s: probe of port %v", set.Name, c.Name, probe.HTTPGet.Port)
				}
			}
		}
	}
}

func TestMonitorsKeepTheTenantsLabels(t *testing.T) {
	endpoints := 0
	for _, o := range rendered(t) {
		switch monitor := o.any.(type) {
		case *monitoring.PodMonitor:
			for _, e := range monitor.Spec.PodMetricsEndpoints {
				endpoints++
				if !e.HonorLabels {
					t.Errorf("%s: honorLabels is off", monitor.Name)
				}
			}
		case *monitoring.ServiceMonitor:
			for _, e := range monitor.Spec.Endpoints {
				endpoints++
				if !e.HonorLabels {
					t.Errorf("%s: honorLabels is off", monitor.Name)
				}
			}
		case *monitoring.PrometheusRule:
			if len(monitor.Spec.Groups) < 3 {
				t.Errorf("%s: %d groups of rules", monitor.Name, len(monitor.Spec.Groups))
			}
		}
	}
	if endpoints != 4 {
		t.Errorf("%d endpoints are scraped, expected 4", endpoints)
	}
}

// What the agent reads is tested by the agent; here, that it is YAML of one document, with the
// version that it wants.
func TestAgentConfiguration(t *testing.T) {
	files := map[string]bool{}
	for _, o := range rendered(t) {
		config, ok := o.any.(*core.ConfigMap)
		if !ok || config.Data["agent.yaml"] == "" {
			continue
		}
		files[o.file] = true
		var values map[string]any
		if err := yaml.UnmarshalStrict([]byte(config.Data["agent.yaml"]), &values); err != nil {
			t.Errorf("%s: %v", o.file, err)
		}
		if values["version"] != "v1" {
			t.Errorf("%s: version %v", o.file, values["version"])
		}
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	if len(names) < 5 {
		t.Errorf("configurations in %v only", names)
	}
}

// Every container with a folder of the host or a capability has its row in the page for people.
func TestTheSecurityPageNamesEveryException(t *testing.T) {
	text, err := os.ReadFile("../../../docs/kubernetes/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "| ") {
			rows = append(rows, line)
		}
	}
	words := map[string]string{"$kubelet": "<kubelet>", "$root/alloc": "<hostRoot>/alloc", "$root": "hostRoot",
		"$run": "/run/rubato", "/run/nvidia/driver": "driver's root", "/var/lib/rubato/mps/pipe": "MPS pipe folder"}
	named := func(container, what string) bool {
		for _, row := range rows {
			cells := strings.Split(row, "|")
			if strings.Contains(cells[1], container) && strings.Contains(cells[2], what) {
				return true
			}
		}
		return false
	}
	for key, folders := range hostFolders {
		container := key[strings.Index(key, "/")+1:]
		for _, folder := range folders {
			path := strings.Fields(folder)[0]
			if path == "$root/softgpu/run" { // Of the software GPU's pod: no node with work has it.
				continue
			}
			for _, from := range []string{"$kubelet", "$root/alloc", "$root", "$run", "/run/nvidia/driver", "/var/lib/rubato/mps/pipe"} {
				path = strings.ReplaceAll(path, from, words[from])
			}
			if !named(container, path) {
				t.Errorf("security.md has no row for %s and %s", container, path)
			}
		}
	}
	for component, capabilities := range mayAdd {
		for _, capability := range capabilities {
			if component != "softgpu" || !named("device", string(capability)) {
				t.Errorf("security.md has no row for %s of %s", capability, component)
			}
		}
	}
}
