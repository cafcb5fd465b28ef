{{- define "rubato.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "rubato.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "rubato.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rubato.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "rubato.labels" -}}
{{ include "rubato.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "rubato.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rubato.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "rubato.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "rubato.usesMps" -}}
{{- if ne .Values.mode "timeslice" -}}true{{- end -}}
{{- end -}}

{{/* "true" where an optional kind of the Prometheus Operator is wanted. Arguments: root, enabled. */}}
{{- define "rubato.operatorKind" -}}
{{- if or (eq (toString .enabled) "true") (and (eq (toString .enabled) "auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}true{{- end -}}
{{- end -}}

{{- define "rubato.hasAdmissionPolicies" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end -}}

{{/* What agent.yaml says. */}}
{{- define "rubato.agentConfig" -}}
{{- $byLabel := eq .Values.policy.by "label" -}}
{{- $every := list "*" -}}
{{- $gpu := dict "source" (ternary "software" .Values.gpu.source .Values.softwareGpu.enabled) "include" .Values.gpu.include "exclude" .Values.gpu.exclude "driverRoot" (ternary "/driver-root" "/" (ne .Values.driver.root "")) -}}
{{- if .Values.softwareGpu.enabled -}}
{{- $_ := set $gpu "fakeDevices" (int .Values.softwareGpu.devices) -}}
{{- end -}}
{{- $config := dict
  "version" "v1"
  "resourceName" .Values.resourceName
  "slotsPerGpu" (int .Values.slotsPerGpu)
  "allocation" (dict "policy" .Values.allocation.policy)
  "gpu" $gpu
  "deviceInjection" .Values.deviceInjection
  "shimInjection" .Values.shimInjection
  "hostRoot" .Values.hostRoot
  "kubelet" (dict "rootDirectory" .Values.kubelet.rootDirectory)
  "scheduler" (dict "runtimeDirectory" .Values.runtimeDirectory)
  "mode" .Values.mode
  "admission" (dict "onRefusal" .Values.admission.onRefusal)
  "policy" (dict
    "realtimeNamespaces" (ternary $every .Values.policy.realtimeNamespaces $byLabel)
    "budgetNamespaces" (ternary $every .Values.policy.budgetNamespaces $byLabel)
    "memoryNamespaces" (ternary $every .Values.policy.memoryNamespaces $byLabel)
    "maxOverheadBudget" .Values.policy.maxOverheadBudget
    "memoryOvercommit" .Values.policy.memoryOvercommit)
  "hostPID" (dict "enabled" .Values.hostPID.enabled)
  "nodeLabels" (dict "enabled" .Values.nodeLabels.enabled)
  "metrics" (dict "address" (printf "0.0.0.0:%d" (int .Values.agent.metricsPort)))
  "log" (dict "level" .Values.agent.logLevel)
-}}
{{- if include "rubato.usesMps" . -}}
{{- $_ := set $config "mps" (dict "pipeDirectory" .Values.mps.pipeDirectory "shmDirectory" .Values.mps.shmDirectory) -}}
{{- end -}}
{{- if .Values.softwareGpu.enabled -}}
{{- $_ := set $config "softwareGpu" (dict "socketDirectory" (printf "%s/softgpu/run" .Values.hostRoot) "libraryDirectory" "/usr/lib/rubato/softgpu") -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.config)) -}}
{{- end -}}

{{/* Of agent.yaml, what a reload does not take up: a change must restart the pods. */}}
{{- define "rubato.startupConfig" -}}
{{- $config := include "rubato.agentConfig" . | fromYaml -}}
{{- $_ := set $config "gpu" (omit $config.gpu "include" "exclude" "recoveryTime" "ignoredXids") -}}
{{- omit $config "policy" "admission" "events" "log" "allocation" "deviceInjection" "shimInjection" "nvidia" | toJson -}}
{{- end -}}

{{/* No privilege, no writable root, no way to more. uid 0: docs/kubernetes/security.md says why. */}}
{{- define "rubato.containerSecurity" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "rubato.podSecurity" -}}
seccompProfile:
  type: RuntimeDefault
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "rubato.nodePlacement" -}}
nodeSelector:
  kubernetes.io/os: linux
  kubernetes.io/arch: amd64
  {{- with .Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if .Values.affinity }}
affinity:
  {{- toYaml .Values.affinity | nindent 2 }}
{{- else }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        {{- if .Values.softwareGpu.enabled }}
        - matchExpressions:
            - {key: rubato.dev/enabled, operator: NotIn, values: ["false"]}
        {{- else }}
        {{- range list
          "feature.node.kubernetes.io/pci-10de.present"
          "feature.node.kubernetes.io/pci-0300_10de.present"
          "feature.node.kubernetes.io/pci-0302_10de.present"
          "nvidia.com/gpu.present"
          "feature.node.kubernetes.io/pci-1002.present"
          "feature.node.kubernetes.io/pci-0300_1002.present"
          "feature.node.kubernetes.io/pci-0380_1002.present"
          "feature.node.kubernetes.io/pci-1200_1002.present"
        }}
        - matchExpressions:
            - {key: {{ . }}, operator: In, values: ["true"]}
            - {key: rubato.dev/enabled, operator: NotIn, values: ["false"]}
        {{- end }}
        - matchExpressions:
            - {key: rubato.dev/enabled, operator: In, values: ["true"]}
        {{- end }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "rubato.podCommon" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
serviceAccountName: {{ include "rubato.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "rubato.podSecurity" . | nindent 2 }}
{{ include "rubato.nodePlacement" . }}
{{- end -}}

{{/* The service account's token for the one container that talks to the API server. */}}
{{- define "rubato.tokenVolume" -}}
- name: api-access
  projected:
    defaultMode: 0400
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end -}}

{{/* Environment by which NVIDIA's runtime gives our own containers the management library. */}}
{{- define "rubato.nvidiaEnv" -}}
{{- if and (not .root.Values.softwareGpu.enabled) (has .root.Values.gpu.source (list "auto" "nvml")) }}
- {name: NVIDIA_VISIBLE_DEVICES, value: all}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: {{ .capabilities | quote }}}
{{- end }}
{{- end -}}
